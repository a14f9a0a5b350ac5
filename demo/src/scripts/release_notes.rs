//! Release notes, by two writers at the same time.

use crate::script::{Beat, Script, Step, Tool};

pub(crate) const SCRIPT: Script = Script {
    ask: "Draft the release notes for 2.4: one version for users, one for operators.",
    task: "Draft the release notes for 2.4",
    steps: &[
        Step::new("Collect what changed", COLLECT),
        Step::new("Write both versions in parallel", WRITE),
        Step::new("Check every claim", CHECK),
        Step::new("Hand over", HAND_OVER),
    ],
    summary: "Two drafts for 2.4, every claim checked against its pull request",
};

const COLLECT: &[Beat] = &[
    Beat::Say(
        "First I need to know what is really in this release. I read the merged pull requests \
         since the last tag, not the commit messages: those tell what was tried, the pull \
         requests tell what was decided.",
    ),
    Beat::Use(Tool {
        name: "GitHub",
        intent: "List what was merged since 2.3",
        input: r#"{"query": "repo:acme/ledger is:pr is:merged base:main merged:>=2026-09-30",
            "fields": ["number", "title", "labels"]}"#,
        takes_ms: 2_400,
        result: concat!(
            "47 pull requests\n",
            "\n",
            "#1811  Export statements as CSV            [feature]\n",
            "#1824  Dark mode follows the system        [feature]\n",
            "#1830  Search finds partial invoice ids    [fix]\n",
            "#1836  Connection pool: bounded waiting    [operations]\n",
            "#1842  Drop support for PostgreSQL 12      [breaking]\n",
            "… 42 more, 31 of them internal",
        ),
        is_error: false,
    }),
    Beat::Report("47 merged pull requests, 16 of them matter to somebody outside the team"),
];

const WRITE: &[Beat] = &[
    Beat::Say(
        "Sixteen changes are worth telling. The two audiences want different things, so I let \
         **two writers** work side by side.",
    ),
    Beat::Together([
        "**What's new in 2.4, for everyone**\n\n\
         Your statements can leave the house: every list now has an Export button that gives you \
         a `.csv` with exactly the rows you see, filters included. Dark mode follows your system, \
         so the app dims when the rest of your screen does. And search has become more forgiving: \
         type the last four digits of an invoice and it finds it.\n\n\
         - Export works on statements, invoices and payments\n\
         - Amounts keep their currency, so your spreadsheet adds up\n\
         - Nothing to install, it is there when you sign in next",
        "**Upgrading to 2.4, for operators**\n\n\
         One thing to do before you upgrade: PostgreSQL 12 is no longer supported, run `SELECT \
         version()` and move to 14 or later. The upgrade itself needs no downtime. Old and new \
         processes can run side by side, and the migration only adds columns.\n\n\
         The connection pool no longer waits without a bound. A request that gets no connection \
         within two seconds fails with `503` and `Retry-After`, and `pool_wait_seconds` shows how \
         close you are.\n\n\
         - New: `LEDGER_POOL_WAIT`, default `2s`\n\
         - Removed: `LEDGER_LEGACY_SEARCH`",
    ]),
    Beat::Report("Both drafts are written"),
];

const CHECK: &[Beat] = &[
    Beat::Use(Tool {
        name: "Verify",
        intent: "Hold each sentence against the pull request it comes from",
        input: r#"{"drafts": ["users.md", "operators.md"], "against": "pull-requests",
            "strict": true}"#,
        takes_ms: 3_000,
        result: concat!(
            "23 claims, 22 confirmed\n",
            "\n",
            "1 not confirmed: \"Export works on statements, invoices and payments\"\n",
            "   #1811 covers statements and invoices; payments are planned for 2.5",
        ),
        is_error: false,
    }),
    Beat::Say(
        "Good that I asked: the export does **not** cover payments yet. I correct the sentence \
         rather than promise something that users would look for in vain.",
    ),
    Beat::Use(Tool {
        name: "Edit",
        intent: "Promise only what is there",
        input: r#"{"file": "users.md", "old": "statements, invoices and payments",
            "new": "statements and invoices"}"#,
        takes_ms: 900,
        result: "1 replacement in users.md",
        is_error: false,
    }),
];

const HAND_OVER: &[Beat] = &[Beat::Say(
    "Both drafts are ready for you to read:\n\n\
     - `users.md`, 120 words, no jargon\n\
     - `operators.md`, 150 words, the breaking change first\n\n\
     Please look at the sentence about PostgreSQL most of all. It is the one that can hurt \
     somebody, and I could not find out how many of our customers still run version 12.",
)];
