# Runs Autobahn's fuzzing client against a relay and compares the verdicts with `expected.json`. Called by `run.sh`.
#
# The suite expects a server that echoes. The relay greets, and answers every text that is not a JSON object with one
# `error` frame; so the greeting is passed over, and such a frame counts as the echo that the case waits for. Framing,
# pings, closing and UTF-8 are judged on the real thing; the contents of an echo are not.
from __future__ import print_function

import collections
import json
import os
import site
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
EXPECTED = os.path.join(HERE, "expected.json")
# Not 9.*: messages of up to 16 MiB, which the relay refuses. Not 12.* and 13.*: compression, which it does not offer.
CASES = ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "10.*"]
# From good to bad.
VERDICTS = ["OK", "INFORMATIONAL", "NON-STRICT", "UNIMPLEMENTED", "UNCLEAN", "WRONG CODE", "FAILED BY CLIENT", "FAILED"]


def judged(relay, folder):
    """The verdict for each case: on what was done, and on how the connection ended."""
    variables = {name: os.environ[name] for name in os.environ if not name.startswith("RELAY_")}
    variables["RELAY_LOG"] = "relay=debug"
    command = [relay, "serve", "--listen", "127.0.0.1:0", "--log-format", "json"]
    log_path = os.path.join(folder, "relay.log")
    with open(log_path, "w") as log:
        process = subprocess.Popen(command, env=variables, stdout=log, stderr=log)
    try:
        address = None
        while not address:
            address = listening(log_path)
            if process.poll() is not None:
                sys.exit("the relay has ended: see " + log_path)
            time.sleep(0.05)
        run_cases("ws://%s/ws" % address, folder)
        if process.poll() is not None:
            sys.exit("the relay ended while it was judged: see " + log_path)
        with open(log_path) as log:
            if '"level":"DEBUG"' not in log.read():
                sys.exit("no connection was logged: is `debug` compiled out? See " + log_path)
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait()
    with open(os.path.join(folder, "index.json")) as index:
        (cases,) = json.load(index).values()
    return {case: [verdict["behavior"], verdict["behaviorClose"]] for case, verdict in cases.items()}


def listening(log_path):
    """Where the relay listens, as soon as it says so."""
    with open(log_path) as log:
        for line in log:
            if line.endswith("}\n") and '"listening"' in line:
                return json.loads(line)["addr"]
    return None


def run_cases(url, folder):
    from autobahntestsuite import fuzzing, wstest
    from autobahntestsuite.case.case import Case

    on_message = fuzzing.FuzzingProtocol.onMessage

    def on_frame(self, text, is_binary):
        frame = json.loads(text)
        if frame["type"] == "connected":
            return
        case = self.runCase
        if frame["type"] == "error":
            echoes = [event for event in case.expected.get(Case.OK, []) if event[0] == "message"]
            seen = len([event for event in case.received if event[0] == "message"])
            if seen < len(echoes):
                return case.onMessage(*echoes[seen][1:])
        on_message(self, text, is_binary)

    fuzzing.FuzzingProtocol.onMessage = on_frame
    servers = [{"agent": "agent-relay", "url": url}]
    spec = {"outdir": folder, "servers": servers, "cases": CASES, "exclude-cases": [], "exclude-agent-cases": {}}
    with open(os.path.join(folder, "suite.log"), "w") as sys.stdout:
        wstest.start({"mode": "fuzzingclient"}, spec)
    sys.stdout = sys.__stdout__


def number(case):
    return [int(part) for part in case.split(".")]


def print_table(verdicts):
    sections = collections.defaultdict(collections.Counter)
    for case, (behavior, _) in verdicts.items():
        for row in (case.split(".")[0] + ".*", "all"):
            sections[row][behavior] += 1
    columns = [verdict for verdict in VERDICTS if sections["all"][verdict]]
    print("\n%-8s%s" % ("cases", "".join("%16s" % column for column in columns)))
    for row in CASES + ["all"]:
        print("%-8s%s" % (row, "".join("%16s" % (sections[row][column] or "") for column in columns)))


def compared(expected, verdicts):
    """The differences to what is expected: those to the worse, and all others."""
    worse, other = [], []
    for case in sorted(set(expected) | set(verdicts), key=number):
        before, now = expected.get(case), verdicts.get(case)
        if before == now:
            continue
        is_worse = now is None or (before is not None and any(
            VERDICTS.index(is_now) > VERDICTS.index(was) for was, is_now in zip(before, now)))
        (worse if is_worse else other).append("%s: %s, expected %s" % (case, shown(now), shown(before)))
    return worse, other


def shown(verdict):
    return "no result" if verdict is None else "%s, closing %s" % tuple(verdict)


def main(target, relay, accepts):
    site.addsitedir(os.path.join(target, "packages"))
    folder = os.path.join(target, "report")
    if not os.path.isdir(folder):
        os.makedirs(folder)
    verdicts = judged(relay, folder)
    print_table(verdicts)
    if accepts:
        rows = ['"%s": %s' % (case, json.dumps(verdicts[case])) for case in sorted(verdicts, key=number)]
        with open(EXPECTED, "w") as out:
            out.write("{\n  %s\n}\n" % ",\n  ".join(rows))
        return
    with open(EXPECTED) as file:
        worse, other = compared(json.load(file), verdicts)
    if other:
        print("\nBetter than or other than expected; `run.sh --accept` keeps it:\n  " + "\n  ".join(other))
    if worse:
        sys.exit("\nWorse than expected; %s/index.html shows each case:\n  %s" % (folder, "\n  ".join(worse)))
    print("\nAs expected: %d cases." % len(verdicts))


if __name__ == "__main__":
    arguments = [word for word in sys.argv[1:] if word != "--accept"]
    main(arguments[0], arguments[1], "--accept" in sys.argv)
