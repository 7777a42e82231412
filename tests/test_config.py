from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefed.agent.options import AgentOptions
from edgefed.config import example_agent, example_federation, read_agent, read_federation
from edgefed.config_tables import OptionField, option_fields, variants
from edgefed.coordinator.options import FederationOptions
from edgefed.errors import ConfigError
from edgefed.protocol.tasks import LoraMethod

FEDERATION = 'fleet = "home"\n'
MODEL = '[model]\nname = "google/flan-t5-small"\n'
AGENT = 'device = "d-1"\nfleet = "home"\n[data]\npath = "d.jsonl"\n'


def federation(directory: Path, text: str) -> FederationOptions:
    path = directory / "federation.toml"
    path.write_text(text)
    return read_federation(path)


def refusal(directory: Path, text: str) -> str:
    """The message that a federation file is refused with, without the file's name, which must be there."""
    with pytest.raises(ConfigError) as raised:
        federation(directory, text)
    name = f"{directory / 'federation.toml'}: "
    assert str(raised.value).startswith(name)
    return str(raised.value).removeprefix(name)


class TestRead:
    def test_short_federation_takes_every_default(self, tmp_path: Path) -> None:
        options = federation(tmp_path, FEDERATION + MODEL)
        assert options.method == LoraMethod()
        assert options.rounds == 10
        assert options.directory == str(tmp_path / "edgefed-run")

    def test_values_reach_their_place(self, tmp_path: Path) -> None:
        options = federation(
            tmp_path,
            'fleet = "home"\nrounds = 3\n[model]\nname = "m"\n[method]\nranks = [4]\naggregation = "fedit"\n'
            "[selection]\ndeadline_s = 30\n[server_optimizer]\nname = 'adam'\nlearning_rate = 0.01\n",
        )
        assert (options.rounds, options.method.ranks, options.method.aggregation) == (3, [4], "fedit")
        assert options.selection.deadline_s == 30.0
        assert (options.server_optimizer.name, options.server_optimizer.rate) == ("adam", 0.01)

    def test_method_may_be_named(self, tmp_path: Path) -> None:
        assert federation(tmp_path, f'{FEDERATION}{MODEL}[method]\ntype = "lora"\nalpha = 8').method == LoraMethod(
            alpha=8.0
        )

    def test_agent(self, tmp_path: Path) -> None:
        path = tmp_path / "agent.toml"
        path.write_text(AGENT + '[limits]\nmax_rank = 16\nquantization = "nf4"\n')
        options = read_agent(path)
        assert (options.device, options.limits.max_rank, options.limits.quantization) == ("d-1", 16, "nf4")


class TestPaths:
    def test_relative_paths_of_an_agent_start_at_the_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        home = tmp_path / "board"
        home.mkdir()
        (home / "agent.toml").write_text(
            'device = "d-1"\nfleet = "home"\nstate = "kept"\n'
            '[data]\npath = "data/train.jsonl"\nvalidation = "/elsewhere/held.jsonl"\n'
            '[broker]\npassword_file = "secret"\ntls_ca = "ca.pem"\ntls_certificate = "c.pem"\ntls_key = "k.pem"\n'
            'tls_crl = "r.pem"\n'
            '[models]\n"google/flan-t5-small" = "../models/small"\n'
        )
        monkeypatch.chdir(tmp_path)
        options = read_agent(Path("board/agent.toml"))
        assert options.state == str(home / "kept")
        assert options.data.path == str(home / "data/train.jsonl")
        assert options.data.validation == "/elsewhere/held.jsonl"
        assert options.broker.password_file == str(home / "secret")
        assert options.broker.tls_ca == str(home / "ca.pem")
        assert options.broker.tls_crl == str(home / "r.pem")
        assert options.broker.tls_certificate == str(home / "c.pem")
        assert options.broker.tls_key == str(home / "k.pem")
        assert options.models == {"google/flan-t5-small": str(home / "../models/small")}

    def test_no_path_stays_no_path(self, tmp_path: Path) -> None:
        path = tmp_path / "agent.toml"
        path.write_text(AGENT)
        options = read_agent(path)
        assert (options.data.validation, options.broker.password_file, options.broker.tls_ca) == ("", "", "")

    def test_home_directory_is_expanded(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path / "me"))
        assert federation(tmp_path, 'fleet = "home"\ndirectory = "~/run"\n' + MODEL).directory == str(
            tmp_path / "me/run"
        )

    def test_model_is_a_directory_only_where_there_is_one(self, tmp_path: Path) -> None:
        text = FEDERATION + '[model]\nname = "tiny"\n'
        assert federation(tmp_path, text).model.name == "tiny"
        (tmp_path / "tiny").mkdir()
        assert federation(tmp_path, text).model.name == str(tmp_path / "tiny")

    def test_model_named_in_models_keeps_its_name(self, tmp_path: Path) -> None:
        (tmp_path / "tiny").mkdir()
        options = federation(tmp_path, FEDERATION + '[model]\nname = "tiny"\n[models]\ntiny = "tiny"\n')
        assert options.model.name == "tiny"
        assert options.models == {"tiny": str(tmp_path / "tiny")}


class TestRefusals:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (
                f"{FEDERATION}{MODEL}[selection]\nquorom = 2",
                "selection.quorom is not a known key; did you mean quorum? allowed in [selection]: participants, "
                "over_selection, quorum, expected_devices, gather_s, deadline_s, late, late_exponent, max_staleness",
            ),
            (
                f"{FEDERATION}quorum = 2\n{MODEL}",
                "quorum is not a known key; it belongs in [selection]. allowed at the top of the file: fleet, rounds, "
                "seed, target_loss, directory, roster, model, task, method, server_optimizer, training, evaluation, "
                "privacy, client_privacy, selection, robustness, divergence, transfers, aggregator, broker, models",
            ),
            (
                f"{FEDERATION}{MODEL}[method]\nrank = 8",
                "method.rank is not a known key; did you mean ranks? allowed in [method]: type, aggregation, "
                "target_modules, ranks, server_rank, alpha, rank_scaling, dropout, upload_precision, "
                "broadcast_precision",
            ),
            (
                f"{FEDERATION}{MODEL}[method]\nranks = [8, 2, 8]",
                "method.ranks lists 8 more than once: name every rank once",
            ),
            (MODEL, "fleet is missing; it must be given: text"),
            (FEDERATION, "model is missing; it must be given: a table with name"),
            (f"{FEDERATION}[model]", "model.name is missing; it must be given: text, not empty"),
            (f'{FEDERATION}[model]\nname = ""', 'model.name is "" (text); allowed is text, not empty'),
            (f'{FEDERATION}model = "t5"', 'model is "t5" (text); allowed is a table, written [model]'),
            (
                f'{FEDERATION}rounds = "10"\n{MODEL}',
                'rounds is "10" (text); allowed is a whole number, 1 or more',
            ),
            (
                f"{FEDERATION}rounds = true\n{MODEL}",
                "rounds is true (true or false); allowed is a whole number, 1 or more",
            ),
            (
                f"{FEDERATION}rounds = 2.5\n{MODEL}",
                "rounds is 2.5 (a decimal number); allowed is a whole number, 1 or more",
            ),
            (f"{FEDERATION}rounds = 0\n{MODEL}", "rounds is 0; allowed is a whole number, 1 or more"),
            (
                f"{FEDERATION}rounds = 2026-01-01\n{MODEL}",
                "rounds is 2026-01-01 (a date); allowed is a whole number, 1 or more",
            ),
            (
                f"{FEDERATION}{MODEL}[broker]\nport = 70000",
                "broker.port is 70000; allowed is a whole number from 1 to 65535",
            ),
            (
                f"{FEDERATION}{MODEL}[training]\nlearning_rate = 0",
                "training.learning_rate is 0; allowed is a number, above 0",
            ),
            (
                f"{FEDERATION}{MODEL}[training]\nlearning_rate = inf",
                "training.learning_rate is inf (a decimal number); allowed is a number, above 0",
            ),
            (
                f"{FEDERATION}{MODEL}[selection]\nlate_exponent = nan",
                "selection.late_exponent is nan (a decimal number); allowed is a number, 0 or more",
            ),
            (
                f"{FEDERATION}{MODEL}[evaluation]\nshare = 1",
                "evaluation.share is 1; allowed is a number, above 0 and below 1",
            ),
            (
                f"{FEDERATION}{MODEL}[training]\ngradient_checkpointing = 1",
                "training.gradient_checkpointing is 1; allowed is true or false",
            ),
            (
                f'{FEDERATION}{MODEL}[selection]\nlate = "keep"',
                'selection.late is "keep" (text); allowed is one of "discount", "drop"',
            ),
            (
                f'{FEDERATION}{MODEL}[server_optimizer]\nname = "sgd"',
                'server_optimizer.name is "sgd" (text); allowed is one of "adam", "adamw", "averaging", "momentum"',
            ),
            (
                f'{FEDERATION}{MODEL}[method]\ntype = "prompt"',
                'method.type is "prompt" (text); allowed is one of "lora"',
            ),
            (
                f"{FEDERATION}{MODEL}[method]\nranks = []",
                "method.ranks is []; allowed is a list of at least one, each a whole number, 1 or more",
            ),
            (
                f"{FEDERATION}{MODEL}[method]\nranks = [4, 0]",
                "method.ranks is [4, 0]; allowed is a list of at least one, each a whole number, 1 or more",
            ),
            (
                f'{FEDERATION}{MODEL}[models]\n"a" = 3',
                "models is a table; allowed is a table whose values are text",
            ),
        ],
    )
    def test_says_key_found_and_allowed(self, tmp_path: Path, text: str, message: str) -> None:
        assert refusal(tmp_path, text) == message

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (f"{FEDERATION}{MODEL}[selection]\nquorum = 3\nparticipants = 2", "[selection]: quorum (3) is larger than"),
            (
                f"{FEDERATION}{MODEL}[server_optimizer]\nbeta1 = 0.5",
                "[server_optimizer]: beta1 has no effect on averaging",
            ),
            (f"{FEDERATION}{MODEL}[broker]\ntls_key = 'k'", "[broker]: tls_certificate and tls_key belong together"),
            (
                f"{FEDERATION}{MODEL}[broker]\nsigned = true",
                "[broker]: signed needs tls_ca, tls_certificate and tls_key",
            ),
            (
                f"{FEDERATION}{MODEL}[method]\naggregation = 'fedit'",
                "[method]: fedit averages factors of one rank only",
            ),
            (f"fleet = 'My Fleet'\n{MODEL}", "fleet name 'My Fleet' is not usable"),
            (f"{FEDERATION}target_loss = 2\n{MODEL}[evaluation]\nevery = 0", "target_loss needs evaluation"),
            (f"{FEDERATION}{MODEL}[robustness]\nbyzantine = 1", "[robustness]: byzantine has no effect without a rule"),
            (
                f"{FEDERATION}{MODEL}[robustness]\nrule = 'multi_krum'\nbyzantine = 1",
                "multi_krum with byzantine = 1 needs 5 updates in each round, and a round may close with 1",
            ),
        ],
    )
    def test_values_that_do_not_fit_together(self, tmp_path: Path, text: str, message: str) -> None:
        assert refusal(tmp_path, text).startswith(message)

    def test_long_values_are_cut(self, tmp_path: Path) -> None:
        assert len(refusal(tmp_path, f'{FEDERATION}rounds = "{"x" * 5000}"\n{MODEL}')) < 200

    def test_missing_file_names_init(self, tmp_path: Path) -> None:
        with pytest.raises(
            ConfigError, match=r"nowhere\.toml: there is no such file; `edgefed init` writes an example"
        ):
            read_agent(tmp_path / "nowhere.toml")

    def test_directory(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
            read_agent(tmp_path)

    def test_not_toml_says_the_line(self, tmp_path: Path) -> None:
        assert "is not valid TOML" in (message := refusal(tmp_path, 'fleet = "home"\nrounds 10\n'))
        assert "line 2" in message

    def test_not_text(self, tmp_path: Path) -> None:
        (tmp_path / "agent.toml").write_bytes(b'device = "\xff"')
        with pytest.raises(ConfigError, match="is not UTF-8 text: byte 10"):
            read_agent(tmp_path / "agent.toml")

    def test_agent_names_its_own_keys(self, tmp_path: Path) -> None:
        (tmp_path / "agent.toml").write_text(AGENT + "[limits]\nmax_ranks = 4")
        with pytest.raises(ConfigError, match=r"limits.max_ranks is not a known key; did you mean max_rank\?"):
            read_agent(tmp_path / "agent.toml")

    @given(
        document=st.dictionaries(
            st.sampled_from(["fleet", "rounds", "model", "method", "selection", "training", "other"]),
            st.one_of(
                st.integers(),
                st.floats(),
                st.booleans(),
                st.text("ab0é"),
                st.lists(st.integers()),
                st.dictionaries(
                    st.sampled_from(["name", "ranks", "quorum", "type", "learning_rate", "x"]),
                    st.one_of(
                        st.integers(-2, 4), st.floats(), st.text("ab0é", max_size=3), st.lists(st.integers(0, 4))
                    ),
                ),
            ),
        )
    )
    def test_any_document_is_read_or_refused(self, document: dict[str, Any]) -> None:
        from edgefed.config_tables import build

        try:
            built = build(FederationOptions, document, "federation.toml")
        except ConfigError as error:
            assert str(error).startswith("federation.toml: ")  # noqa: PT017
        else:
            assert built.fleet == document["fleet"]


def keys(options: type, path: str = "") -> list[tuple[str, OptionField]]:
    """Every (dotted key, field) below a struct."""
    found = []
    for field in option_fields(options):
        found.append((f"{path}{field.key}", field))
        for inner in variants(field.kind).values():
            found += keys(inner, f"{path}{field.key}.")
    return found


class TestExamples:
    def test_federation_reads_back_to_the_defaults(self, tmp_path: Path) -> None:
        example = federation(tmp_path, example_federation())
        shortest = federation(tmp_path, 'fleet = "my-fleet"\n' + MODEL)
        assert example == shortest

    def test_agent_reads_back_to_the_defaults(self, tmp_path: Path) -> None:
        path = tmp_path / "agent.toml"
        path.write_text(example_agent())
        example = read_agent(path)
        path.write_text('device = "device-00"\nfleet = "my-fleet"\n[data]\npath = "data/device-00.jsonl"\n')
        assert example == read_agent(path)

    @pytest.mark.parametrize(
        ("text", "options"), [(example_federation(), FederationOptions), (example_agent(), AgentOptions)]
    )
    def test_every_key_appears_with_its_meaning(self, text: str, options: type) -> None:
        table, seen = "", {}
        lines = text.splitlines()
        for before, line in zip(["", *lines], lines, strict=False):
            if line.startswith("["):
                table = line.strip("[]")
                seen[table] = before
            elif " = " in line and not line.startswith('# "'):
                key = line.removeprefix("# ").split(" = ")[0]
                seen[f"{table}.{key}".lstrip(".")] = before
        for key, _ in keys(options):
            assert seen[key].startswith("# "), f"{key} is there without a comment"

    @pytest.mark.parametrize(
        "suggested", ["target_loss", "learning_rate", "merge_memory_bytes", '"google/flan-t5-small"']
    )
    def test_what_is_commented_out_is_valid_too(self, tmp_path: Path, suggested: str) -> None:
        text = example_federation()
        assert text.count(f"\n# {suggested} = ") == 1
        options = federation(tmp_path, text.replace(f"\n# {suggested} = ", f"\n{suggested} = "))
        assert options != federation(tmp_path, text)

    def test_says_range_and_unit(self) -> None:
        text = example_federation()
        assert "(a whole number from 1 to 65535)\nport = 1883" in text
        assert "(a number, above 0; in seconds)\ngather_s = 10.0" in text


def test_reading_an_agent_file_imports_nothing_of_the_aggregator(tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_text(example_agent())
    code = (
        "import sys, pathlib; from edgefed.config import read_agent; read_agent(pathlib.Path(sys.argv[1]));"
        "heavy = {'numpy', 'torch', 'sqlalchemy', 'rich', 'typer'} & set(sys.modules);"
        "ours = [m for m in sys.modules if m.startswith(('edgefed.coordinator', 'edgefed.aggregation'))];"
        "sys.exit(str([heavy, ours]) if heavy or ours else 0)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "agent.toml")], check=True)


@pytest.mark.parametrize("hours", ['["8-9"]', '["25:00-03:00"]', '"22:00-06:00"', "[8, 9]"])
def test_hours_that_are_none_are_told_what_hours_look_like(tmp_path: Path, hours: str) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(f'device = "d"\nfleet = "f"\n[data]\npath = "x"\n[eligibility]\nhours = {hours}\n')
    with pytest.raises(ConfigError) as told:
        read_agent(path)
    assert f"eligibility.hours is {hours}" in str(told.value)
    assert 'each a span of local time such as "22:00-06:00", HH:MM to HH:MM' in str(told.value)
