"""Names that a head, and so its teacher, can have. Checked without torch, of whose containers heads become members."""

LONGEST = 100
"""Characters: a name becomes part of file names."""
KEPT_BY_TORCH = frozenset((
    "T_destination", "add_module", "apply", "bfloat16", "buffers", "call_super_init", "children", "clear", "compile", "cpu", "cuda",
    "double", "dump_patches", "eval", "extra_repr", "float", "forward", "get_buffer", "get_extra_state", "get_parameter",
    "get_submodule", "half", "ipu", "items", "keys", "load_state_dict", "modules", "mtia", "named_buffers", "named_children",
    "named_modules", "named_parameters", "parameters", "pop", "register_backward_hook", "register_buffer", "register_forward_hook",
    "register_forward_pre_hook", "register_full_backward_hook", "register_full_backward_pre_hook",
    "register_load_state_dict_post_hook", "register_load_state_dict_pre_hook", "register_module", "register_parameter",
    "register_state_dict_post_hook", "register_state_dict_pre_hook", "requires_grad_", "set_extra_state", "set_submodule",
    "share_memory", "smart_apply", "state_dict", "to", "to_empty", "train", "training", "type", "update", "values", "xpu", "zero_grad",
))  # fmt: skip
"""Attributes of `nn.ModuleDict`, and `smart_apply`, which transformers adds to every module. A test compares them with the
installed torch's, and a network is checked against that."""


def head_name_problem(name: str) -> str | None:
    """Why a head (and its teacher) cannot have this name, in one clause; None where it can.

    torch's containers keep the names of their own methods and attributes (keys, values, pop, training, forward, ...) for themselves.
    """
    if name == "backbone":
        return "this is the name of the student's own features"
    if name.startswith("_") or name in KEPT_BY_TORCH:
        return "torch keeps this name for itself"
    if not name or "." in name or not name.isprintable() or len(name) > LONGEST:
        return f"a name has 1 to {LONGEST} printable characters and no '.'"
    return None
