//! A latency regression is traced to one innocent-looking line.

use crate::script::{Beat, Script, Step, Tool};

pub(crate) const SCRIPT: Script = Script {
    ask: "Checkout has become slow since yesterday. What happened?",
    task: "Investigate the checkout latency regression",
    steps: &[
        Step::new("Measure", MEASURE),
        Step::new("Narrow it down", NARROW),
        Step::new("Confirm the cause", CONFIRM),
        Step::new("Propose a fix", PROPOSE),
    ],
    summary: "p99 went from 180 ms to 1.9 s through one query per cart line; a fix is up for review",
};

const MEASURE: &[Beat] = &[
    Beat::Say(
        "\"Slow\" can mean many things. Let me see which requests, how slow, and since when.",
    ),
    Beat::Use(Tool {
        name: "Query",
        intent: "Latency of checkout over the last two days",
        input: r#"{"promql": "histogram_quantile(0.99, sum by (le) (rate(http_seconds_bucket{route=\"/checkout\"}[5m])))", "range": "48h"}"#,
        takes_ms: 1_600,
        result: concat!(
            "p50   92 ms →   98 ms\n",
            "p95  140 ms →  610 ms\n",
            "p99  180 ms → 1,900 ms\n",
            "\n",
            "step at Tue 16:42 UTC, flat before and after",
        ),
        is_error: false,
    }),
    Beat::Say(
        "The median is fine, the tail is **ten times** slower, and it changed in one step at \
         16:42. That is no growth and no noisy neighbour. Something was switched at that minute, \
         and it hurts only some requests.",
    ),
    Beat::Report("p99 went from 180 ms to 1.9 s in one step, Tuesday 16:42"),
];

const NARROW: &[Beat] = &[
    Beat::Use(Tool {
        name: "Query",
        intent: "What was deployed or switched around 16:42",
        input: r#"{"events": ["deploy", "flag", "config"], "from": "16:30", "to": "16:45"}"#,
        takes_ms: 1_100,
        result: concat!(
            "16:31  deploy  search 8.2.0\n",
            "16:41  deploy  checkout 3.19.0  (12 commits)\n",
            "16:44  flag    new-header: 5 % → 10 %",
        ),
        is_error: false,
    }),
    Beat::Say(
        "`checkout 3.19.0` fits to the minute. Twelve commits are too many to guess, so I compare \
         a slow trace with a fast one.",
    ),
    Beat::Use(Tool {
        name: "Traces",
        intent: "One slow checkout beside a fast one",
        input: r#"{"service": "checkout", "compare": [{"slower_than": "1.5s"}, {"faster_than": "100ms"}]}"#,
        takes_ms: 2_000,
        result: concat!(
            "fast   2 cart lines    3 queries     71 ms\n",
            "slow  64 cart lines   66 queries  1,840 ms\n",
            "\n",
            "only in slow: SELECT * FROM tax_rates WHERE region = $1   × 64",
        ),
        is_error: false,
    }),
    Beat::Report("Slow checkouts ask for tax rates once per cart line"),
];

const CONFIRM: &[Beat] = &[
    Beat::Say(
        "Now it is plain: one query **per cart line**. Small carts do not notice, large ones wait \
         for sixty round trips. Let me find the line.",
    ),
    Beat::Use(Tool {
        name: "Bash",
        intent: "Which of the twelve commits touched tax rates",
        input: r#"{"command": "git log -S tax_rates --oneline v3.18.0..v3.19.0 -- src/"}"#,
        takes_ms: 700,
        result: "4be21c7 Move tax calculation into CartLine",
        is_error: false,
    }),
    Beat::Say(
        "A refactoring, and a sensible one: the calculation belongs to the line. But the lookup \
         moved along with it, out of the place where it was done once for the whole cart. Every \
         test has a cart of one or two lines, so nothing turned red.",
    ),
];

const PROPOSE: &[Beat] = &[
    Beat::Use(Tool {
        name: "Edit",
        intent: "Look the rates up once and hand them to each line",
        input: r#"{"file": "src/cart.rs", "old": "line.total(&db).await?",
            "new": "line.total(&rates)"}"#,
        takes_ms: 600,
        result: "1 replacement in src/cart.rs",
        is_error: false,
    }),
    Beat::Use(Tool {
        name: "Bash",
        intent: "Measure a cart of 64 lines",
        input: r#"{"command": "cargo bench --bench checkout -- cart_of_64"}"#,
        takes_ms: 2_100,
        result: "cart_of_64   time: [82.1 ms 83.0 ms 84.2 ms]   change: -95.5 %",
        is_error: false,
    }),
    Beat::Say(
        "A cart of 64 lines takes `83 ms` again. The fix is up for review, with a test that \
         **counts queries** on a large cart, because a faster database would have hidden this \
         from any test that counts milliseconds.\n\n\
         - cause: a lookup moved into a loop, `4be21c7`\n\
         - who noticed: customers with more than twenty items, about 6 % of them\n\
         - until the fix is out: rolling back to 3.18 is safe, nothing else depends on it",
    ),
];
