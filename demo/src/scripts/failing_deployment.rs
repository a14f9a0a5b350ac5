//! A deployment goes wrong, is taken back, and succeeds.

use crate::script::{Beat, Script, Step, Tool};

pub(crate) const SCRIPT: Script = Script {
    ask: "Deploy payments 5.1 to production. If anything looks odd, take it back first and ask later.",
    task: "Deploy payments 5.1",
    steps: &[
        Step::new("Check the preconditions", CHECK),
        Step::new("Roll out to one pod in ten", CANARY),
        Step::new("Take it back and find the cause", ROLL_BACK),
        Step::new("Roll out again", AGAIN),
    ],
    summary: "payments 5.1 serves all traffic; the first attempt was rolled back after 40 seconds",
};

const CHECK: &[Beat] = &[
    Beat::Say(
        "Before I touch anything: is the build the one that was tested, and is this a good moment?",
    ),
    Beat::Use(Tool {
        name: "Deploy",
        intent: "Verify the artefact and the state of the cluster",
        input: r#"{"action": "preflight", "service": "payments", "version": "5.1.0",
            "environment": "production"}"#,
        takes_ms: 1_500,
        result: concat!(
            "signature        ok\n",
            "tests            1,284 passed\n",
            "migrations       1 pending, additive\n",
            "open incidents   none\n",
            "error budget     87 % left",
        ),
        is_error: false,
    }),
    Beat::Report("Everything is green, 87 % of the error budget is left"),
];

const CANARY: &[Beat] = &[
    Beat::Say(
        "All clear. I give the new version **one pod in ten** and watch it for a while before \
         anyone else depends on it.",
    ),
    Beat::Use(Tool {
        name: "Deploy",
        intent: "Start the canary and watch its errors",
        input: r#"{"action": "canary", "service": "payments", "version": "5.1.0", "share": 0.1,
            "abort_above": {"error_rate": 0.01}}"#,
        takes_ms: 3_000,
        result: concat!(
            "canary aborted after 40 s: error rate 6.2 % (limit 1 %)\n",
            "\n",
            "  POST /refunds  500  column \"refunds.reason_code\" does not exist",
        ),
        is_error: true,
    }),
    Beat::Report("The canary fails on refunds: 6.2 % errors"),
];

const ROLL_BACK: &[Beat] = &[
    Beat::Say(
        "That is exactly what the canary is for. As agreed, I take it back **first** and think second.",
    ),
    Beat::Use(Tool {
        name: "Deploy",
        intent: "Back to 5.0 everywhere",
        input: r#"{"action": "rollback", "service": "payments", "to": "5.0.7"}"#,
        takes_ms: 1_400,
        result: "all pods on 5.0.7, error rate 0.02 %",
        is_error: false,
    }),
    Beat::Say(
        "Nobody is affected any more. Now the cause: the new code reads `refunds.reason_code`, \
         and the migration that adds this column is pending. Preflight told me so, and I read \
         \"additive\" as \"harmless\". It is harmless for the old version, but the new one cannot \
         live without it.",
    ),
    Beat::Use(Tool {
        name: "Bash",
        intent: "See in which order the pipeline does things",
        input: r#"{"command": "yq '.jobs.deploy.steps[].name' .github/workflows/payments.yml"}"#,
        takes_ms: 800,
        result: "preflight\ncanary\nmigrate\nrollout",
        is_error: false,
    }),
    Beat::Say(
        "The pipeline migrates after the canary. For most releases the order makes no difference, \
         for this one it is the whole story. I run the migration now, it only adds a column, and \
         then try again.",
    ),
];

const AGAIN: &[Beat] = &[
    Beat::Use(Tool {
        name: "Deploy",
        intent: "Add the column",
        input: r#"{"action": "migrate", "service": "payments", "version": "5.1.0"}"#,
        takes_ms: 1_300,
        result: "applied 20261114_refund_reason_code in 0.3 s, no locks held",
        is_error: false,
    }),
    Beat::Use(Tool {
        name: "Deploy",
        intent: "Canary, then everyone",
        input: r#"{"action": "rollout", "service": "payments", "version": "5.1.0", "stages": [0.1, 0.5, 1.0]}"#,
        takes_ms: 3_000,
        result: concat!(
            "10 %   error rate 0.02 %\n",
            "50 %   error rate 0.02 %\n",
            "100 %  error rate 0.02 %, p99 84 ms",
        ),
        is_error: false,
    }),
    Beat::Say(
        "**payments 5.1 is live** and as quiet as 5.0 was.\n\n\
         - 41 refunds failed in those forty seconds; all of them were retried by the clients and \
         went through\n\
         - I opened a pull request that moves `migrate` before `canary`\n\
         - Preflight should refuse a pending migration that the new code needs, that is the \
         second one",
    ),
];
