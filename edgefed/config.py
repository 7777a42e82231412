"""Reads `federation.toml` and `agent.toml`, and writes commented examples of them.

What the files may say is defined by the packages that use it: `coordinator.options` and `agent.options`. They are
imported when a file is read, so that an agent's configuration loads nothing of the aggregator.
"""

from __future__ import annotations

import os.path
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from edgefed.config_tables import build
from edgefed.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from edgefed.agent.options import AgentOptions
    from edgefed.coordinator.options import FederationOptions
    from edgefed.transport.options import Broker

__all__ = ["example_agent", "example_federation", "read_agent", "read_federation"]


def read_federation(path: Path) -> FederationOptions:
    """Returns what `federation.toml` says; relative paths in it are taken from its own directory.

    `model.name` is such a path where a directory of that name is there and `[models]` does not say otherwise.

    Raises:
        ConfigError: the file is not there, is not TOML, or says something that is not allowed.
    """
    from edgefed.coordinator.options import FederationOptions

    options = build(FederationOptions, _document(path), str(path))
    base = path.absolute().parent
    name = options.model.name
    local = name not in options.models and Path(_beside(base, name)).is_dir()
    return replace(
        options,
        directory=_beside(base, options.directory),
        roster=_beside(base, options.roster),
        model=replace(options.model, name=_beside(base, name)) if local else options.model,
        broker=_broker_beside(base, options.broker),
        models={model: _beside(base, directory) for model, directory in options.models.items()},
    )


def read_agent(path: Path) -> AgentOptions:
    """Returns what `agent.toml` says; relative paths in it are taken from its own directory.

    Raises:
        ConfigError: the file is not there, is not TOML, or says something that is not allowed.
    """
    from edgefed.agent.options import AgentOptions

    options = build(AgentOptions, _document(path), str(path))
    base = path.absolute().parent
    return replace(
        options,
        state=_beside(base, options.state),
        root=_beside(base, options.root),
        broker=_broker_beside(base, options.broker),
        data=replace(
            options.data,
            path=_beside(base, options.data.path),
            validation=_beside(base, options.data.validation),
        ),
        models={model: _beside(base, directory) for model, directory in options.models.items()},
    )


def example_federation() -> str:
    """Returns a `federation.toml` with every key, its meaning, what is allowed and its default."""
    from edgefed.config_examples import render
    from edgefed.coordinator.options import FederationOptions

    return render(
        FederationOptions,
        title="A federation, read by `edgefed aggregator`.",
        samples={
            "fleet": "my-fleet",
            "model.name": "google/flan-t5-small",
            "target_loss": 2.0,
            "server_optimizer.learning_rate": 1.0,
            "robustness.max_examples": 10_000,
            "robustness.max_update_norm": 10.0,
            "privacy.max_epsilon": 8.0,
            "client_privacy.max_epsilon": 8.0,
            "aggregator.merge_memory_bytes": 268_435_456,
            "models": {"google/flan-t5-small": "models/flan-t5-small"},
        },
    )


def example_agent() -> str:
    """Returns an `agent.toml` with every key, its meaning, what is allowed and its default."""
    from edgefed.agent.options import AgentOptions
    from edgefed.config_examples import render

    return render(
        AgentOptions,
        title="One device, read by `edgefed agent`.",
        samples={
            "device": "device-00",
            "fleet": "my-fleet",
            "data.path": "data/device-00.jsonl",
            "data.fields": {"dialogue": "conversation"},
            "eligibility.max_temperature_c": 80.0,
            "eligibility.max_load_per_core": 1.5,
            "privacy.max_epsilon": 8.0,
            "emulate.memory_available_bytes": 4_294_967_296,
            "emulate.uplink_bits_per_s": 10_000_000,
            "emulate.downlink_bits_per_s": 50_000_000,
            "models": {"google/flan-t5-small": "models/flan-t5-small"},
        },
    )


def _document(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            document: dict[str, Any] = tomllib.load(file)
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file; `edgefed init` writes an example") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text: byte {error.start} cannot be decoded") from None
    except (ValueError, RecursionError) as error:  # beside TOMLDecodeError, of a number with thousands of digits
        raise ConfigError(f"{path}: is not valid TOML: {error}") from None
    return document


def _broker_beside(base: Path, broker: Broker) -> Broker:
    return replace(
        broker,
        password_file=_beside(base, broker.password_file),
        tls_ca=_beside(base, broker.tls_ca),
        tls_certificate=_beside(base, broker.tls_certificate),
        tls_key=_beside(base, broker.tls_key),
        tls_crl=_beside(base, broker.tls_crl),
    )


def _beside(base: Path, text: str) -> str:
    """Returns the path as seen from `base`; empty, which means no path, stays empty.

    Raises:
        ConfigError: no file can have that name.
    """
    if "\0" in text:
        raise ConfigError(f"{text!r} cannot be a path: it holds a NUL character")
    # Path.expanduser raises where a user is unknown; such a name is better reported by whoever opens the file.
    return str(base / os.path.expanduser(text)) if text else ""  # noqa: PTH111
