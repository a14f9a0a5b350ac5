//! A suite that fails on every third run is made reliable.

use crate::script::{Beat, PermissionAsked, Script, Spent, Step, Tool};

pub(crate) const SCRIPT: Script = Script {
    ask: "Our CI is red on every third run. Find the flaky tests and fix the cause, not the symptom.",
    task: "Stabilise the flaky test suite",
    steps: &[
        Step::new("Find the flaky tests", FIND),
        Step::new("Understand why they fail", UNDERSTAND),
        Step::new("Fix the cause", FIX),
        Step::new("Prove it", PROVE),
    ],
    summary: "3 flaky tests share one cause, which is fixed; 200 runs in a row are green",
};

const FIND: &[Beat] = &[
    Beat::Say(
        "I'll start with numbers rather than with the code. A test that fails once in three runs \
         will show itself if the suite runs often enough, so I run it **fifty times** and count.",
    ),
    Beat::MayI(PermissionAsked {
        tool: "Bash",
        command: "for i in $(seq 50); do cargo nextest run --no-fail-fast; done",
        description: "Runs the whole suite fifty times: ten minutes on a build machine",
    }),
    Beat::Use(Tool {
        name: "Bash",
        intent: "Run the suite fifty times and count failures per test",
        input: r#"{"command": "for i in $(seq 50); do cargo nextest run --no-fail-fast; done 2>&1 | counts", "timeout_s": 600}"#,
        takes_ms: 3_400,
        result: concat!(
            "50 runs, 17 with a failure\n",
            "\n",
            "  9  orders::expires_unpaid_after_an_hour\n",
            "  6  orders::reminder_is_sent_once\n",
            "  5  sessions::idle_session_is_closed\n",
            "\n",
            "all other tests: 0 failures",
        ),
        is_error: false,
    }),
    Beat::Report("17 of 50 runs are red, and three tests are to blame"),
];

const UNDERSTAND: &[Beat] = &[
    Beat::GoOn(Spent {
        tokens: 50_000,
        description: "Reading 17 red logs took all the tokens set aside for this task",
    }),
    Beat::Say(
        "Three tests, and the names have something in common: an hour, a reminder, an idle \
         session. All of them are about **time**. Let me see how they tell it.",
    ),
    Beat::Use(Tool {
        name: "Grep",
        intent: "See where these tests get their time from",
        input: r#"{"pattern": "Utc::now|sleep\\(", "path": "crates", "glob": "**/tests/*.rs"}"#,
        takes_ms: 900,
        result: concat!(
            "crates/orders/tests/expiry.rs:31:    let order = Order::placed_at(Utc::now() - Duration::hours(1));\n",
            "crates/orders/tests/expiry.rs:34:    sleep(Duration::from_millis(100)).await;\n",
            "crates/orders/tests/reminder.rs:22:    sleep(Duration::from_millis(100)).await;\n",
            "crates/sessions/tests/idle.rs:18:    sleep(Duration::from_millis(100)).await;",
        ),
        is_error: false,
    }),
    Beat::Say(
        "There it is. Each test starts a background job, sleeps for `100 ms` and hopes that the \
         job is done by then. On a quiet laptop it is. On a CI machine that compiles something \
         else at the same time, it sometimes is not.\n\n\
         - Raising the sleep would make the failure rarer and the suite slower.\n\
         - Retrying would hide it, and hide real bugs with it.\n\
         - The tests should own the clock, so that nothing depends on how fast the machine is.",
    ),
    Beat::Report("All three sleep 100 ms and hope that a job is done"),
];

const FIX: &[Beat] = &[
    Beat::Say(
        "The jobs already take a `Clock`, only the tests pass the real one. I give them a paused \
         clock and wait for the job itself instead of for some time.",
    ),
    Beat::Use(Tool {
        name: "Edit",
        intent: "Let the test own the clock",
        input: r#"{"file": "crates/orders/tests/expiry.rs",
            "old": "sleep(Duration::from_millis(100)).await;",
            "new": "clock.advance(Duration::hours(1));\njobs.idle().await;"}"#,
        takes_ms: 700,
        result: "1 replacement in crates/orders/tests/expiry.rs",
        is_error: false,
    }),
    Beat::Use(Tool {
        name: "Edit",
        intent: "The same for the other two",
        input: r#"{"files": ["crates/orders/tests/reminder.rs", "crates/sessions/tests/idle.rs"],
            "old": "sleep(Duration::from_millis(100)).await;", "new": "jobs.idle().await;"}"#,
        takes_ms: 600,
        result: "2 replacements in 2 files",
        is_error: false,
    }),
];

const PROVE: &[Beat] = &[
    Beat::Use(Tool {
        name: "Bash",
        intent: "Run the suite two hundred times, on a machine kept busy",
        input: r#"{"command": "stress -c 8 & for i in $(seq 200); do cargo nextest run; done 2>&1 | counts"}"#,
        takes_ms: 3_200,
        result: "200 runs, 0 with a failure\nmedian 11.8 s (was 12.4 s)",
        is_error: false,
    }),
    Beat::Say(
        "Two hundred runs on a deliberately overloaded machine, and **not one failure**. As a \
         bonus the suite is half a second faster, because nobody sleeps any more.\n\n\
         What changed:\n\
         - three tests own their clock and wait for the job, not for time\n\
         - no production code was touched\n\
         - I suggest a lint that forbids `sleep` in tests, so that this stays fixed",
    ),
];
