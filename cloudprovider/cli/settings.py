"""Settings of a program: from flags, else the environment, else a YAML file, else the default.

A setting is one :class:`Option`; it is ``--bridge-address`` as a flag, ``CLOUDPROVIDER_BRIDGE_ADDRESS`` in the
environment and ``bridge-address`` in the file. All three are text (the file also takes YAML's own scalars and lists),
parsed by the same function, so that a value means the same wherever it comes from.
"""

import argparse
import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from cloudprovider.core.errors import ConfigurationError

ENVIRONMENT_PREFIX: Final = "CLOUDPROVIDER_"
CONFIG_FLAG: Final = "config"

Parse = Callable[[str], Any]


@dataclass(frozen=True, kw_only=True)
class Option:
    """One setting. ``name`` is the flag without its dashes.

    ``parse`` turns text into the value and raises ValueError with a sentence that says what is expected. ``default``
    is text too; None: there is none, and a ``required`` setting must be given. ``many``: may be given several times,
    or with commas; the value is a tuple.
    """

    name: str
    help: str
    metavar: str
    parse: Parse = str
    default: str | None = None
    required: bool = False
    many: bool = False
    choices: tuple[str, ...] = ()

    @property
    def flag(self) -> str:
        """As on the command line."""
        return f"--{self.name}"

    @property
    def variable(self) -> str:
        """As in the environment."""
        return ENVIRONMENT_PREFIX + self.name.upper().replace("-", "_")

    @property
    def key(self) -> str:
        """As a Python name."""
        return self.name.replace("-", "_")

    def value(self, texts: Sequence[str], source: str) -> Any:
        """The value of ``texts``, which came from ``source``. Raises ConfigurationError."""
        parts = [part.strip() for text in texts for part in (text.split(",") if self.many else [text])]
        values = [self._one(part, source) for part in parts if part or not self.many]
        return tuple(values) if self.many else values[-1]

    def _one(self, text: str, source: str) -> Any:
        if self.choices and text not in self.choices:
            hint = nearest(text, self.choices)
            raise ConfigurationError(f'{source}: "{text}" is not one of {", ".join(self.choices)}{hint}')
        try:
            return self.parse(text)
        except (ValueError, ConfigurationError) as e:
            raise ConfigurationError(f"{source}: {e}") from e


def add_arguments(parser: argparse.ArgumentParser, title: str, options: Iterable[Option]) -> None:
    """Add the flags, with the variable and the default in the help."""
    group = parser.add_argument_group(title)
    for option in options:
        notes = [f"environment {option.variable}"]
        if option.choices:
            notes.insert(0, "one of " + ", ".join(option.choices))
        if option.default:
            notes.insert(0, f"default {option.default}")
        if option.required:
            notes.insert(0, "required")
        group.add_argument(
            option.flag,
            dest=option.key,
            action="append",
            metavar=option.metavar,
            help=f"{option.help} ({'; '.join(notes)})".replace("%", "%%"),
        )


def resolve(
    options: Sequence[Option], flags: Mapping[str, list[str] | None], environment: Mapping[str, str]
) -> dict[str, Any]:
    """Return every setting by its Python name; None where it was not given and has no default.

    ``flags``: argparse's namespace as a mapping. The file is the one that ``--config`` (or its variable) names.
    Raises ConfigurationError: an unknown key in the file, a value that does not parse, a required setting missing.
    """
    (config,) = flags.get(CONFIG_FLAG) or [environment.get(f"{ENVIRONMENT_PREFIX}CONFIG", "")]
    file = _read(Path(config), options) if config else {}
    settings: dict[str, Any] = {}
    missing: list[Option] = []
    for option in options:
        if given := flags.get(option.key):
            settings[option.key] = option.value(given, option.flag)
        elif text := environment.get(option.variable):
            settings[option.key] = option.value([text], option.variable)
        elif option.name in file:
            settings[option.key] = option.value(file[option.name], f"{config}: {option.name}")
        elif option.default is not None:
            settings[option.key] = option.value([option.default], f"default of {option.flag}")
        else:
            settings[option.key] = () if option.many else None
            missing += [option] if option.required else []
    if missing:
        names = ", ".join(f"{option.flag} (or {option.variable})" for option in missing)
        raise ConfigurationError(f"missing: {names}; --help explains")
    return settings


def unknown_variables(options: Iterable[Option], environment: Iterable[str]) -> list[str]:
    """Sentences about variables with our prefix that are no setting: a typo, or Kubernetes' own service variables."""
    known = {option.variable for option in options} | {f"{ENVIRONMENT_PREFIX}CONFIG"}
    return [
        f"{name} in the environment is not a setting{nearest(name, known)}"
        for name in sorted(environment)
        if name.startswith(ENVIRONMENT_PREFIX) and name not in known
    ]


def nearest(name: str, known: Iterable[str]) -> str:
    """'; did you mean "…"?' where a known name is near, else nothing."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return f'; did you mean "{found[0]}"?' if found else ""


def _read(path: Path, options: Sequence[Option]) -> dict[str, list[str]]:
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as e:
        raise ConfigurationError(f"configuration file {path}: {e.strerror}; give the right path with --config") from e
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise ConfigurationError(f"configuration file {path} is not YAML: {' '.join(str(e).split())}") from e
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigurationError(f"configuration file {path}: settings are expected as lines of the form name: value")
    known = {option.name: option for option in options}
    file: dict[str, list[str]] = {}
    for name, value in content.items():
        if name not in known:
            raise ConfigurationError(f'configuration file {path}: "{name}" is not a setting{nearest(str(name), known)}')
        file[name] = _texts(known[name], value, path)
    return file


def _texts(option: Option, value: object, path: Path) -> list[str]:
    match value:
        case list() if option.many:
            items: list[object] = value
        case list() | dict() | None:
            raise ConfigurationError(f"configuration file {path}: {option.name} takes one value")
        case _:
            items = [value]
    return [str(item).lower() if isinstance(item, bool) else str(item) for item in items]
