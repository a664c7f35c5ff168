"""The row: what this package's entry point of the group `latentlm.architectures` imports."""

from latentlm.architectures import Architecture, register

register(
    Architecture(
        model_type="gated_window",
        config="gated_window.configuration_gated_window:GatedWindowConfig",
        heads={
            "AutoModel": "gated_window.modeling_gated_window:GatedWindowModel",
            "AutoModelForCausalLM": "gated_window.modeling_gated_window:GatedWindowForCausalLM",
        },
    )
)
