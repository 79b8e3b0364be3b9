"""Where agents learn and are judged.

Importing this registers the environments with Gymnasium: `gymnasium.make("intune/SimulatedPipeline-v0")`,
`gymnasium.make_vec("intune/SimulatedPipeline-v0", num_envs=1024)`,
`gymnasium.make("intune/LivePipeline-v0", tunable=loader)`.
"""

from gymnasium.envs.registration import register

register(
    id="intune/SimulatedPipeline-v0",
    entry_point="intune.envs.simulated:SimulatedPipelineEnv",
    vector_entry_point="intune.envs.vector:SimulatedPipelineVectorEnv",
)

register(id="intune/LivePipeline-v0", entry_point="intune.envs.live:LivePipelineEnv", nondeterministic=True)
