"""The catalog of known models: where their files are, their sizes and their licences."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from ltxq.errors import UnknownModel

SHARED_TEXT_ENCODER = "gemma-3-12b-it"  # folder beside the models that have no own gemma/

OWN_TEXT_ENCODER = "gemma"  # folder in a model's folder, used before the shared one


@dataclass(frozen=True, kw_only=True)
class Repo:
    """Files of a repository on the Hugging Face hub."""

    id: str
    files: tuple[str, ...]  # names or patterns ("*.json"), at the top of the repository
    size: int  # of these files, in bytes, approximate
    licence: str  # name of the licence, which is accepted on `page`

    @property
    def page(self) -> str:
        """The page that shows the licence and has the button to accept it."""
        return f"https://huggingface.co/{self.id}"


GEMMA = Repo(
    id="google/gemma-3-12b-it",
    files=("*.json", "*.safetensors", "tokenizer.model"),
    size=24_400_000_000,
    licence="Gemma Terms of Use",
)
LTX_LICENCE = "LTX-2 Community License"


@dataclass(frozen=True, kw_only=True)
class KnownModel:
    """A model that `ltxq model download` offers."""

    name: str
    about: str
    weights: Repo  # the checkpoint, and the upscaler for two stages
    text_encoder: Repo = GEMMA  # the same for every model, and stored once

    @property
    def parts(self) -> dict[str, Repo]:
        """The repositories to download, by folder name in LTXQ_MODEL_DIR."""
        return {self.name: self.weights, SHARED_TEXT_ENCODER: self.text_encoder}

    @property
    def size(self) -> int:
        """The total download in bytes, approximate."""
        return sum(part.size for part in self.parts.values())


# Sizes are those of the published files, rounded.
CATALOG = {
    model.name: model
    for model in (
        KnownModel(
            name="ltx-2-19b-distilled",
            about="LTX-2, 19 B, 8 steps, sound at 24 kHz",
            weights=Repo(
                id="Lightricks/LTX-2",
                files=(
                    "ltx-2-19b-distilled.safetensors",
                    "ltx-2-spatial-upscaler-x2-1.0.safetensors",
                ),
                size=44_300_000_000,
                licence=LTX_LICENCE,
            ),
        ),
        KnownModel(
            name="ltx-2-19b-distilled-fp8",
            about="the same, published in FP8: less to download, and faster to load",
            weights=Repo(
                id="Lightricks/LTX-2",
                files=(
                    "ltx-2-19b-distilled-fp8.safetensors",
                    "ltx-2-spatial-upscaler-x2-1.0.safetensors",
                ),
                size=28_000_000_000,
                licence=LTX_LICENCE,
            ),
        ),
        KnownModel(
            name="ltx-2.3-22b-distilled",
            about="LTX-2.3, 22 B, 8 steps, sound at 48 kHz",
            weights=Repo(
                id="Lightricks/LTX-2.3",
                files=(
                    "ltx-2.3-22b-distilled-1.1.safetensors",
                    "ltx-2.3-spatial-upscaler-x2-1.1.safetensors",
                ),
                size=47_200_000_000,
                licence=LTX_LICENCE,
            ),
        ),
    )
}


def known_model(name: str) -> KnownModel:
    """The catalog's model of that name.

    Raises:
        UnknownModel: there is none; the hint lists the known names.
    """
    if name not in CATALOG:
        raise UnknownModel(
            f"There is no model {name!r} to download.",
            hint=f"Choose one of: {', '.join([*CATALOG, SHARED_TEXT_ENCODER])}.",
        )
    return CATALOG[name]


def parts_of(name: str) -> dict[str, Repo]:
    """What `ltxq model download NAME` gets: repositories by folder name in LTXQ_MODEL_DIR. The
    text encoder has a name too, so that it can be repaired alone.

    Raises:
        UnknownModel: as `known_model`.
    """
    if name == SHARED_TEXT_ENCODER:
        return {name: GEMMA}
    return known_model(name).parts


def repo_of(folder: str) -> Repo | None:
    """The repository whose files are in a folder of this name in LTXQ_MODEL_DIR; None: unknown."""
    if folder == SHARED_TEXT_ENCODER:
        return GEMMA
    return CATALOG[folder].weights if folder in CATALOG else None


def how_to_repair(file: Path) -> str:
    """The hint for a file of a model that is missing, damaged or of another kind.

    A file that `ltxq model download` brings is repaired by it; it leaves others alone.
    """
    folder = file.parent
    repo = repo_of(folder.name)
    if repo and any(
        fnmatchcase(file.name, pattern) or fnmatchcase(pattern, file.name) for pattern in repo.files
    ):
        return f"Repair it with `ltxq model download {folder.name}`."
    if folder.name == OWN_TEXT_ENCODER:
        return (
            f"Put the files of {GEMMA.id} there; or move {folder} away, and use the shared text "
            f"encoder: `ltxq model download {SHARED_TEXT_ENCODER}`."
        )
    if "*" in file.name:
        return "`ltxq model list` lists the models that `ltxq model download NAME` gets."
    return (
        f"Move it out of {folder}, or put a whole copy in its place. `ltxq model list` lists the "
        "models that `ltxq model download NAME` gets."
    )
