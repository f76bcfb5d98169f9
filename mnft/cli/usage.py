"""Plausible mistakes on the command line: understood, or answered with the line to type."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand

from mnft.errors import ConfigError


def choose_model(given: Path | None, checkpoint: Path | None, command: str) -> Path:
    """The model that a command is about, named by `--ckpt` or as the argument.

    Raises:
        ConfigError: it is named twice, or not at all.
    """
    if given is not None and checkpoint is not None:
        raise ConfigError(f"found two models, {given} and --ckpt {checkpoint}, expected one")
    found = given or checkpoint
    if found is None:
        raise ConfigError(
            "found no model, expected a run or a model folder",
            hint=f"mnft {command} --ckpt runs/NAME",
        )
    return found


def find_missing_model(inputs: Sequence[str]) -> ConfigError:
    """The error of `mnft predict` without `--ckpt`, with the line that was probably meant."""
    first, *others = inputs
    is_model = others and any((Path(first) / name).exists() for name in ("best", "config.json"))
    words = [first, *others] if is_model else ["runs/NAME", *inputs]
    return ConfigError(
        "found no model: --ckpt is missing", hint=f"mnft predict --ckpt {shlex.join(words)}"
    )


class SettingsCommand(TyperCommand):
    """A command with `--set`; an option that is a key of the config gets the line to type."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse as usual; refuse an option such as `--epochs 3` with the `--set` that was meant."""
        if (error := self._find_key_as_option(ctx, args)) is not None:
            from mnft import console

            console.show_error(error)
            raise typer.Exit(error.exit_code)
        return super().parse_args(ctx, args)

    def _find_key_as_option(self, ctx: Any, args: list[str]) -> ConfigError | None:
        known: dict[str, bool] = {"--help": True}
        for param in self.params:
            is_flag = bool(getattr(param, "is_flag", False))
            known |= dict.fromkeys([*param.opts, *param.secondary_opts], is_flag)
        wrong, words, rest = [], [], list(args)
        while rest:
            word = rest.pop(0)
            option, equals, value = word.partition("=")
            if option == "--":
                words += [word, *rest]
                break
            if option in known:
                # An option without = takes the next word, whatever it looks like.
                words += [word, *([rest.pop(0)] if rest and not (equals or known[option]) else [])]
            elif option.startswith("--") and (key := _find_key(option[2:], known, self.name or "")):
                if not equals:
                    value = rest.pop(0) if rest and not rest[0].startswith("--") else "VALUE"
                wrong.append(option)
                words += ["--set", f"{key}={value}"]
            else:
                words.append(word)
        if not wrong:
            return None
        command = " ".join(["mnft", *ctx.command_path.split()[1:]])
        return ConfigError(
            f"{command} has no option {' or '.join(wrong)}; values of the config are set with "
            "--set",
            hint=f"{command} {shlex.join(words)}",
        )


def _find_key(name: str, known: dict[str, bool], command: str) -> str | None:
    """The config key that an option's name means; None where a known option is as near."""
    from mnft.config.load import find_key

    if (key := find_key(name, prefer=command)) is not None:
        return key
    if difflib.get_close_matches(f"--{name}", list(known), 1):
        return None
    return find_key(name, prefer=command, cutoff=0.8)
