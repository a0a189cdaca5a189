"""Configuration: which place wins, what is refused, and what the operator is told."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.config import OPTIONS, Address, Config, ConfigurationError, Peer, load
from node.config.options import loopback_secret

SECRET = "a secret of more than sixteen bytes"

# Places, strongest first: the name of each as the operator sees it, and how to speak there.
PLACES = ("command line", "environment", "store", "application", "global")


def toml(path: Path, tables: dict[str, dict[str, Any]]) -> Path:
    lines = []
    for table, values in tables.items():
        lines.append(f"[{table}]")
        lines += [f"{name} = {json.dumps(value)}" for name, value in values.items()]
    path.write_text("\n".join(lines))
    return path


def problems(argv: list[str], environ: dict[str, str] | None = None) -> list[str]:
    """What is wrong with these settings, one line each."""
    with pytest.raises(ConfigurationError) as caught:
        load(argv, environ or {})
    return [str(problem) for problem in caught.value.problems]


def only_problem(argv: list[str], environ: dict[str, str] | None = None) -> str:
    (line,) = problems(argv, environ)
    return line


def with_file(path: Path, text: str) -> list[str]:
    path.write_text(text)
    return ["--config", str(path)]


# Defaults and the shape of the thing ----------------------------------------------------------


def test_without_any_option_a_node_is_a_cluster_of_one_on_loopback() -> None:
    config = load([], {})
    assert (config.node_id, config.store_id, config.peers) == ("n1", "my_store", ())
    assert config.http_address == Address("127.0.0.1", 8101)
    assert config.raft_address == Address("127.0.0.1", 7101)
    assert config.data_dir == Path("data")
    assert config.persistence_interval == 5000 and config.persistence_enabled
    assert config == Config()


def test_the_documented_command_line_is_understood() -> None:
    argv = (
        "--node-id n1 --http-address 127.0.0.1:8101 --raft-address 127.0.0.1:7101"
        " --peer n2=127.0.0.1:7102 --peer n3=127.0.0.1:7103 --data-dir DIR --store-id my_store"
        " --persistence-interval 5000"
    )
    config = load(argv.split(), {})
    assert config.peers == (
        Peer("n2", Address("127.0.0.1", 7102)),
        Peer("n3", Address("127.0.0.1", 7103)),
    )
    assert list(config.members) == ["n1", "n2", "n3"]
    assert config.data_dir == Path("DIR")


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        load([], {}).node_id = "n2"  # type: ignore[misc]


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_says_what_it_is(name: str) -> None:
    option = OPTIONS[name]
    assert option.help and option.group
    if option.kind is int:
        assert option.unit and option.limits.low is not None and option.limits.high is not None
    if option.default not in (None, "", ()):
        assert option.read(str(option.default)) == option.default


# Precedence -----------------------------------------------------------------------------------


@given(said=st.dictionaries(st.sampled_from(PLACES), st.integers(1, 86_400_000)))
def test_the_strongest_place_that_says_something_wins(
    tmp_path_factory: pytest.TempPathFactory, said: dict[str, int]
) -> None:
    path = tmp_path_factory.mktemp("config") / "node.toml"
    tables = {"global": "ex_esdb", "application": "my_app.ex_esdb", "store": "ex_esdb.stores.s"}
    toml(path, {table: {"persistence_interval": said[place]} if place in said else {}
                for place, table in tables.items()})  # fmt: skip
    argv = ["--config", str(path), "--otp-app", "my_app", "--store-id", "s"]
    environ = {}
    if "command line" in said:
        argv += ["--persistence-interval", str(said["command line"])]
    if "environment" in said:
        environ["EX_ESDB_PERSISTENCE_INTERVAL"] = str(said["environment"])
    config = load(argv, environ)
    winner = next((place for place in PLACES if place in said), None)
    assert config.persistence_interval == (said[winner] if winner else 5000)
    names = {place: f"{path} [{table}]" for place, table in tables.items()}
    names |= {"command line": "command line", "environment": "environment "
              "EX_ESDB_PERSISTENCE_INTERVAL"}  # fmt: skip
    source = config.described()["persistence_interval"]["source"]
    assert source == (names[winner] if winner else "default")


def test_tables_of_other_applications_and_stores_are_not_used(tmp_path: Path) -> None:
    argv = with_file(
        tmp_path / "c.toml",
        "[other_app.ex_esdb]\npersistence_interval = 1\n"
        "[ex_esdb.stores.other]\npersistence_interval = 2\n",
    )
    assert load(argv, {}).persistence_interval == 5000


def test_a_table_may_choose_the_application_and_the_application_its_store(tmp_path: Path) -> None:
    argv = with_file(
        tmp_path / "c.toml",
        '[ex_esdb]\notp_app = "my_app"\nstore_id = "weak"\n'
        '[my_app.ex_esdb]\nstore_id = "orders"\n'
        "[ex_esdb.stores.orders]\npersistence_enabled = false\n",
    )
    config = load(argv, {})
    assert config.store_id == "orders" and not config.persistence_enabled


def test_the_file_may_be_named_in_the_environment(tmp_path: Path) -> None:
    path = toml(tmp_path / "c.toml", {"ex_esdb": {"node_id": "n7"}})
    assert load([], {"EX_ESDB_CONFIG": str(path)}).node_id == "n7"


def test_a_variable_that_is_empty_counts_as_not_set() -> None:
    assert load([], {"EX_ESDB_PERSISTENCE_INTERVAL": ""}).persistence_interval == 5000


def test_variables_of_others_and_of_our_scripts_are_let_through() -> None:
    load([], {"PATH": "/bin", "EX_ESDB_URL": "http://127.0.0.1:8101", "EX_ESDB_VENV": "/tmp/v"})


# Values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "text", "value"),
    [
        ("http_address", "[::1]:8101", Address("::1", 8101)),
        ("http_address", "localhost:1", Address("localhost", 1)),
        ("persistence_enabled", "false", False),
        ("persistence_enabled", "YES", True),
        ("body_bytes_max", "8MiB", 8 << 20),
        ("body_bytes_max", "8388608", 8 << 20),
        ("data_dir", "/var/lib/x", Path("/var/lib/x")),
        ("log_level", "debug", "debug"),
        ("peers", "n2=127.0.0.1:1, n3=127.0.0.1:2",
         (Peer("n2", Address("127.0.0.1", 1)), Peer("n3", Address("127.0.0.1", 2)))),
    ],
)  # fmt: skip
def test_a_text_is_read_as_its_option_means_it(option: str, text: str, value: object) -> None:
    config = load([], {OPTIONS[option].variable: text})
    assert getattr(config, option) == value


@pytest.mark.parametrize(
    ("option", "text", "allowed"),
    [
        ("http_address", "8101", "host:port"),
        ("http_address", "127.0.0.1:0", "1..65535"),
        ("http_address", "127.0.0.1:65536", "1..65535"),
        ("http_address", "::1:8101", "[::1]:8101"),
        ("http_address", "http://127.0.0.1:8101", "host:port"),
        ("raft_address", "127.0.0.1:", "host:port"),
        ("peers", "127.0.0.1:7102", "id=host:port"),
        ("peers", "n2=127.0.0.1", "id=host:port"),
        ("peers", "n2=127.0.0.1:7102,n3=127.0.0.1:7103,n2=127.0.0.1:7104", "named twice: n2"),
        ("persistence_interval", "0", "1..86400000"),
        ("persistence_interval", "5s", "whole number of ms"),
        ("persistence_interval", "-1", "whole number"),
        ("persistence_enabled", "maybe", "true or false"),
        ("body_bytes_max", "16MB", "1KiB..256MiB"),
        ("node_id", "n 1", "matches"),
        ("node_id", "n" * 33, "matches"),
        ("store_id", "My Store", "matches"),
        ("log_level", "verbose", "debug, info, warning, error"),
        ("data_dir", "a\x00b", "a path"),
    ],
)
def test_a_bad_value_is_named_with_its_place_and_what_is_allowed(
    option: str, text: str, allowed: str
) -> None:
    line = only_problem([], {OPTIONS[option].variable: text})
    assert line.startswith(f"{option} is {text!r} (environment {OPTIONS[option].variable}): must")
    assert allowed in line


@pytest.mark.parametrize(
    "text", ["persistence_interval = true", "persistence_enabled = 1", "node_id = 1",
             "peers = [1]", "http_address = 8101", "data_dir = []"]
)  # fmt: skip
def test_a_value_of_the_wrong_type_in_the_file_is_refused(tmp_path: Path, text: str) -> None:
    line = only_problem(with_file(tmp_path / "c.toml", f"[ex_esdb]\n{text}\n"))
    assert line.startswith(text.split()[0]) and "c.toml [ex_esdb]" in line


@pytest.mark.parametrize("option", ["--data-dir", "--config", "--cluster-secret-file"])
def test_the_home_of_nobody_is_a_problem_like_others(option: str) -> None:
    lines = problems([option, "~no-such-user/place", "--heartbeat-ms", "1"])
    name = option.strip("-").replace("-", "_")
    assert len(lines) == 2 and any(line.startswith(f"{name} is '~no-such") for line in lines)


@given(st.sampled_from(sorted(OPTIONS)), st.text(max_size=40))
def test_no_text_whatever_makes_reading_an_option_fail_otherwise(name: str, text: str) -> None:
    option = OPTIONS[name]
    try:
        option.read(text)
    except ValueError as error:
        assert str(error)


@settings(max_examples=50)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists))
def test_no_type_whatever_makes_reading_an_option_fail_otherwise(raw: Any) -> None:
    for option in OPTIONS.values():
        try:
            option.read(raw)
        except ValueError as error:
            assert str(error)


def test_a_node_that_writes_nothing_cannot_promise_a_disk() -> None:
    argv = ["--default-durability", "persisted", "--persistence-enabled", "false"]
    assert any("default_durability" in line for line in problems(argv))
    assert load(argv[:2], {}).default_durability == "persisted"


# What is told ---------------------------------------------------------------------------------


def test_all_problems_in_all_places_are_reported_at_once(tmp_path: Path) -> None:
    argv = with_file(tmp_path / "c.toml", "[ex_esdb]\nlog_level = 'loud'\nnonsense = 1\n")
    argv += ["--http-address", "x", "--dta-dir", "d"]
    lines = problems(argv, {"EX_ESDB_PERSISTENCE_INTERVL": "1", "EX_ESDB_HEARTBEAT_MS": "x"})
    assert [line.split()[0] for line in lines] == [
        "--dta-dir", "EX_ESDB_PERSISTENCE_INTERVL", "nonsense", "log_level", "heartbeat_ms",
        "http_address",
    ]  # fmt: skip


def test_each_peer_that_is_none_is_a_problem_of_its_own() -> None:
    argv = [f"--peer={text}" for text in ("n2", "n3=db3", "n4=db4:7101", "=db5:7101", "n4=db6:1")]
    lines = problems(argv)
    assert all(line.startswith("peers is ['n2', 'n3=db3', ") for line in lines)
    ends = ("; 'n2' is not", "; 'n3=db3' is not", "; '=db5:7101' is not", "; named twice: n4")
    assert len(lines) == len(ends) and all(map(str.endswith, lines, ends)), lines
    assert len(problems(["--peer=n2", "--raft-address=10.0.0.1:7101"])) == 2, "and a secret is due"


def test_limits_are_held_against_each_other_beside_other_problems() -> None:
    argv = ["--heartbeat-ms=5000", "--election-min-ms=900", "--election-max-ms=400", "--peer=n2"]
    lines = problems([*argv, "--proposal-bytes-max=x", "--frame-bytes-max=16MiB", "--nonsense=1"])
    assert [line.split()[0] for line in lines] == [
        "--nonsense", "peers", "proposal_bytes_max", "election_min_ms", "election_max_ms",
        "frame_bytes_max",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ("--heartbeat-ms x --election-min-ms 30 --election-max-ms 31", "heartbeat_ms"),
        ("--body-bytes-max x --frame-bytes-max 1MiB --peer-queue-bytes-max 1MiB", "body_bytes_max"),
        ("--raft-address x --peer n2=127.0.0.1:7101", "raft_address"),
        ("--http-address x --raft-address 127.0.0.1:8101", "http_address"),
        ("--node-id / --peer n1=127.0.0.1:7102 --peer n2=127.0.0.1:7101", "node_id"),
        ("--cluster-secret-file /none --raft-address 10.0.0.1:7101", "cluster_secret_file"),
        ("--cluster-secret \a --raft-address 10.0.0.1:7101", "cluster_secret"),
        ("--persistence-enabled x --default-durability persisted", "persistence_enabled"),
        ("--tls-ca ~no-such-user/ca --tls-key /none --tls-cert /none", "tls_ca"),
        ("--config /none --raft-address 10.0.0.1:7101", "config"),
        ("--cluster-secret --raft-address 10.0.0.1:7101", "command"),
    ],
)
def test_nothing_is_held_against_an_option_that_is_wrong_itself(options: str, wrong: str) -> None:
    assert only_problem(options.split(" ")).split()[0] == wrong


def test_an_unknown_name_comes_with_what_was_probably_meant(tmp_path: Path) -> None:
    assert only_problem(["--dta-dir", "d"]).endswith("did you mean --data-dir?")
    variable = {"EX_ESDB_PERSISTENCE_INTERVL": "1"}
    assert only_problem([], variable).endswith("did you mean EX_ESDB_PERSISTENCE_INTERVAL?")
    argv = with_file(tmp_path / "c.toml", "[ex_esdb]\npersistence_intervall = 1\n")
    assert only_problem(argv).endswith("did you mean persistence_interval?")


@pytest.mark.parametrize(
    ("text", "blamed"),
    [
        ("persistence_interval = 1", "persistence_interval"),
        ("[ex_esbd]\nnode_id = 'n1'", "ex_esbd"),
        ("[ex_esdb]\nstores = 1", "stores"),
        ("[ex_esdb.stores]\nmy_store = 1", "stores"),
        ("[ex_esdb]\nconfig = 'x'", "config"),
        ("[ex_esdb.stores.my_store]\nstore_id = 'x'", "store_id"),
        ("[a.ex_esdb]\notp_app = 'x'", "otp_app"),
        ("not toml", "config"),
        ("ex_esdb = 1", "ex_esdb"),
    ],
)
def test_a_file_of_the_wrong_shape_is_refused(tmp_path: Path, text: str, blamed: str) -> None:
    assert only_problem(with_file(tmp_path / "c.toml", text)).startswith(blamed)


def test_a_file_that_is_not_there_is_a_problem(tmp_path: Path) -> None:
    assert "No such file" in only_problem(["--config", str(tmp_path / "none.toml")])


def test_an_option_without_its_value_is_a_problem() -> None:
    assert "--node-id" in only_problem(["--node-id"])


def test_a_word_that_belongs_to_no_option_is_a_problem() -> None:
    assert only_problem(["start"]).startswith("start")


@pytest.mark.parametrize(
    ("options", "blamed", "reason"),
    [
        ("--heartbeat-ms 200", "election_min_ms", "twice heartbeat_ms, which is 200"),
        ("--election-max-ms 300", "election_max_ms", "more than election_min_ms"),
        ("--leader-fallback-ms 100", "leader_fallback_ms", "at least election_min_ms"),
        ("--event-bytes-max 32MiB", "event_bytes_max", "at most body_bytes_max"),
        ("--frame-bytes-max 16MiB", "frame_bytes_max", "more than body_bytes_max"),
        ("--proposal-bytes-max 1MiB", "proposal_bytes_max", "at least body_bytes_max"),
        ("--peer-queue-bytes-max 1MiB", "peer_queue_bytes_max", "at least frame_bytes_max"),
        ("--unpersisted-bytes-max 1MiB", "unpersisted_bytes_max", "at least body_bytes_max"),
        ("--data-dir d --tail-dir d/tails", "tail_dir", "outside of data_dir"),
        ("--http-address 127.0.0.1:7101", "raft_address", "another port"),
        ("--peer n2=127.0.0.1:7101", "peers", "another address for n2"),
        ("--tls-cert x", "tls_key", "given together"),
    ],
)
def test_limits_are_held_against_each_other(options: str, blamed: str, reason: str) -> None:
    lines = problems(options.split())
    assert any(line.startswith(blamed) and reason in line for line in lines), lines


# The cluster and its secret -------------------------------------------------------------------


def test_on_loopback_a_missing_secret_is_replaced_by_a_known_one() -> None:
    config = load(["--peer", "n2=127.0.0.1:7102", "--store-id", "s"], {})
    assert config.cluster_secret == loopback_secret("s")
    assert config.described()["cluster_secret"] == {"value": "(hidden)", "source": "default"}


@pytest.mark.parametrize(
    "argv", [["--peer", "n2=10.0.0.2:7101"], ["--raft-address", "0.0.0.0:7101"],
             ["--peer", "n2=db2:7101"], ["--peer", "n2=127.example.com:7101"]]
)  # fmt: skip
def test_where_other_machines_can_reach_it_a_missing_secret_is_refused(argv: list[str]) -> None:
    assert only_problem(argv).startswith("cluster_secret (default): must be given")


def test_a_given_secret_is_taken_and_never_shown() -> None:
    config = load([], {"EX_ESDB_CLUSTER_SECRET": SECRET})
    assert config.cluster_secret == SECRET
    assert SECRET not in repr(config) and SECRET not in json.dumps(config.described())
    line = only_problem([], {"EX_ESDB_CLUSTER_SECRET": "tell nobody"})
    assert "16 bytes" in line and "tell nobody" not in line
    assert "\x07" not in only_problem([], {"EX_ESDB_CLUSTER_SECRET": "tell\x07nobody"})


def test_a_misspelt_option_does_not_give_its_secret_away() -> None:
    for argv in (["--cluster-secrt", SECRET], [f"--cluster-secrt={SECRET}"]):
        line = only_problem(argv)
        assert line.endswith("did you mean --cluster-secret?") and SECRET not in line


def test_a_file_that_is_no_certificate_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file.pem"
    file.write_text("hello")
    path = str(file)
    ca, cert = problems(["--tls-cert", path, "--tls-key", path, "--tls-ca", path])
    assert ca.startswith(f"tls_ca is {path} (command line): must be an authority's certificate")
    assert cert.startswith(f"tls_cert is {path} (command line): must be a certificate")


def test_a_directory_is_no_certificate(tmp_path: Path) -> None:
    path = str(tmp_path)
    ca, cert = problems(["--tls-cert", path, "--tls-key", path, "--tls-ca", path])
    assert ca.startswith(f"tls_ca is {path} (command line): must be an authority's certificate")
    assert cert.startswith(f"tls_cert is {path} (command line): must be a certificate")


def test_a_key_with_a_password_is_a_problem_and_nobody_is_asked_for_it(tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl to make certificates with")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    make = f"{openssl} req -x509 -newkey rsa:2048 -passout pass:password -days 2 -subj /CN=n1"
    subprocess.run([*make.split(), "-keyout", key, "-out", cert], check=True, capture_output=True)
    line = only_problem(["--tls-cert", str(cert), "--tls-key", str(key), "--tls-ca", str(cert)])
    assert line.startswith(f"tls_cert is {cert} (command line): must be a certificate in PEM")


def test_a_secret_may_be_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text(SECRET + "\n")
    config = load(["--peer", "n2=10.0.0.2:7101", "--raft-address", "10.0.0.1:7101"],
                  {"EX_ESDB_CLUSTER_SECRET_FILE": str(path)})  # fmt: skip
    assert config.cluster_secret == SECRET
    assert config.described()["cluster_secret"]["source"] == f"file {path}"


def test_an_unreadable_secret_file_is_a_problem(tmp_path: Path) -> None:
    line = only_problem(["--cluster-secret-file", str(tmp_path / "none")])
    assert line.startswith("cluster_secret_file") and "can be read" in line


@pytest.mark.parametrize("host", ["10.0.0.1", "127.0.0.1"])
def test_an_empty_secret_that_was_given_is_not_replaced_by_the_known_one(
    tmp_path: Path, host: str
) -> None:
    path = tmp_path / "secret"
    path.write_text("\n")
    argv = ["--raft-address", f"{host}:7101", "--peer", f"n2={host}:7102"]
    for empty in (
        ["--cluster-secret-file", str(path)],
        ["--cluster-secret", ""],
        with_file(tmp_path / "node.toml", '[ex_esdb]\ncluster_secret = ""'),
    ):
        assert "must be 16 bytes or more" in only_problem([*argv, *empty])


def test_two_secrets_are_one_too_many(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text(SECRET)
    line = only_problem(["--cluster-secret-file", str(path)], {"EX_ESDB_CLUSTER_SECRET": SECRET})
    assert "given too" in line and SECRET not in line


def test_all_nodes_can_be_given_the_same_list_of_peers() -> None:
    environ = {
        "EX_ESDB_PEERS": "n1=db1:7101,n2=db2:7101",
        "EX_ESDB_NODE_ID": "n2",
        "EX_ESDB_RAFT_ADDRESS": "0.0.0.0:7101",
        "EX_ESDB_HTTP_ADVERTISE_ADDRESS": "db2:8101",
        "EX_ESDB_CLUSTER_SECRET": SECRET,
    }
    config = load([], environ)
    assert config.peers == (Peer("n1", Address("db1", 7101)),)
    assert config.raft_advertise_address == Address("db2", 7101)


def test_an_address_that_nobody_can_call_is_not_told_to_others() -> None:
    argv = ["--peer", "n2=db2:7101", "--http-address", "0.0.0.0:8101", "--cluster-secret", SECRET]
    assert only_problem(argv).startswith("http_advertise_address is 0.0.0.0:8101")


# The program ----------------------------------------------------------------------------------


def node_program(*argv: str) -> subprocess.CompletedProcess[str]:
    project = Path(__file__).resolve().parent.parent
    code = "from node.config import load_or_exit; load_or_exit('1.2.3')"
    command = [sys.executable, "-c", code, *argv]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=30)


def test_problems_stop_the_start_with_one_line_each_and_exit_2() -> None:
    ended = node_program("--http-address", "x", "--log-level", "loud")
    assert ended.returncode == 2 and ended.stdout == ""
    assert [line.split()[0] for line in ended.stderr.splitlines()[1:]] == [
        "http_address",
        "log_level",
    ]


def test_help_shows_every_option_and_examples_that_work() -> None:
    ended = node_program("--help")
    assert ended.returncode == 0
    assert all(option.flag in ended.stdout for option in OPTIONS.values())
    assert "--peer n2=127.0.0.1:7102" in ended.stdout
    assert ended.stdout.isascii(), "a terminal without UTF-8 shows it, too"
    assert all(word in ended.stdout for word in ("[ex_esdb]", "EX_ESDB_PEERS=", "peers = ["))


def test_the_file_that_the_readme_shows_does_what_it_says(tmp_path: Path) -> None:
    readme = (Path(__file__).resolve().parents[1] / "README.md").read_text("utf-8")
    text = readme.partition("```toml\n")[2].partition("```")[0]
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    argv = with_file(tmp_path / "file", text.replace("/run/secrets/cluster", str(secret)))
    config = load([*argv, "--node-id", "n2", "--raft-address", "0.0.0.0:7101",
                   "--http-address", "10.0.0.2:8101"], {})  # fmt: skip
    assert str(config.raft_advertise_address) == "10.0.0.2:7101"
    assert [peer.node_id for peer in config.peers] == ["n1", "n3"]
    assert (config.persistence_interval, config.cluster_secret) == (1000, SECRET)


def test_the_version_can_be_asked_for() -> None:
    assert node_program("--version").stdout == "ex-esdb 1.2.3\n"
