"""`amradio teachers` and `amradio students`: what there is."""

from .. import students, teachers
from .tables import print_table


def list_teachers() -> None:
    """Prints the well-known teachers of every kind: dims, licence, and whether the weights are on this machine."""
    rows = [
        (k.kind, k.model, f"{k.million_parameters:,.1f}", k.summary_dim or "-", k.spatial_dim, k.input_size or f"any x{k.patch_size}",
         k.patch_size, k.licence, "yes" if k.is_here else "no")
        for k in teachers.catalogue()
    ]  # fmt: skip
    columns = ("type", "model", "M", "summary", "spatial", "input px", "patch", "licence of the weights", "here")
    print_table("Teachers", columns, rows)
    print(
        "Any other model of these types works too, from the hub by name or from a local folder: teachers: {NAME: {type: TYPE, model: ...}}."
    )
    print(f"Types: {', '.join(s.model_fields['type'].default for s in teachers.TEACHERS)}. Fetch one: hf download MODEL.")


def list_students() -> None:
    """Prints every size of every student."""
    rows = [
        (r.type, r.size, r.dim, r.depth or "-", r.num_heads or "-", r.patch_size, f"{r.parameters / 1e6:,.1f}")
        for r in students.catalogue()
    ]
    print_table("Students", ("type", "size", "dim", "depth", "heads", "patch", "M parameters"), rows)
    print("ViT: parameters with the position table of 2048 px and 4 summary tokens. student: {type: vit, size: SIZE, patch_size: 16}.")
    print("timm: these and any other backbone of timm, by name. student: {type: timm, model: NAME}.")
    print("own: any torch module, passed in Python: amradio.distill(recipe, student=amradio.students.OwnStudent(module, patch_size=16)).")
