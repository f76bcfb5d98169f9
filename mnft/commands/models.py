"""`mnft models`: names of models with what they cost."""

from __future__ import annotations

from dataclasses import asdict

from mnft import console
from mnft.model.profile import list_profiles


def run(pattern: str | None, *, img_size: int | None, outputs: int | None, as_json: bool) -> None:
    """List models that match a pattern, with parameters and MACs.

    Raises:
        ModelError: nothing matches.
    """
    with console.progress("counting") as on_progress:
        profiles = []
        for profile in list_profiles(pattern, img_size=img_size, num_classes=outputs):
            profiles.append(profile)
            on_progress(len(profiles), 0)
    if as_json:
        console.show_json({"models": [asdict(profile) for profile in profiles]})
        return
    console.show_table(
        ["name", "parameters", "MACs", "input", "weights"],
        [
            [
                p.name,
                f"{p.params / 1e6:.2f} M",
                f"{p.macs / 1e6:,.1f} M",
                " x ".join(map(str, p.input_size)),
                "yes" if p.pretrained else "-",
            ]
            for p in profiles
        ],
    )
    console.note(
        "weights: whether timm has pretrained weights; input: channels x height x width in pixels"
    )
