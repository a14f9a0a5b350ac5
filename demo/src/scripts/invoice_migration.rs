//! A migration that must not be done, and an agent that says so.

use crate::script::{Beat, Script, Step, Tool};

pub(crate) const SCRIPT: Script = Script {
    ask: "Migrate the invoices table to the new schema tonight. It has to be lossless.",
    task: "Migrate the invoices table",
    steps: &[
        Step::new("Take stock", TAKE_STOCK),
        Step::new("Rehearse on a copy", REHEARSE),
        Step {
            name: "Compare before and after",
            beats: COMPARE,
            fails: Some("the migration would lose 12 invoices: nothing in production was changed"),
        },
        Step::new("Migrate production", &[Beat::Report("Migrating")]),
    ],
    summary: "Every invoice is migrated",
};

const TAKE_STOCK: &[Beat] = &[
    Beat::Say(
        "\"Lossless\" is the important word here, so I want to be able to prove it. I begin by \
         counting what there is, in a way that I can repeat afterwards.",
    ),
    Beat::Use(Tool {
        name: "SQL",
        intent: "Count rows and build a checksum of every amount",
        input: r#"{"database": "billing-replica", "query": "SELECT count(*), sum(amount_cents), bit_xor(hashtext(id || amount_cents)) FROM invoices"}"#,
        takes_ms: 2_000,
        result: concat!(
            "  count   |  sum           | checksum\n",
            "----------+----------------+-----------\n",
            " 4182330  | 98,211,402,773 | 5f3a91c2",
        ),
        is_error: false,
    }),
    Beat::Report("4,182,330 invoices, checksum 5f3a91c2"),
    Beat::Say(
        "A little over **four million** invoices. Reading them takes two seconds, so comparing \
         all of them is cheap and there is no reason to look at samples only.",
    ),
];

const REHEARSE: &[Beat] = &[
    Beat::Say(
        "I never run a migration for the first time in production. Last night's backup becomes a \
         copy, and the copy becomes the rehearsal.",
    ),
    Beat::Use(Tool {
        name: "Bash",
        intent: "Restore the backup into a scratch database",
        input: r#"{"command": "pg_restore --jobs 8 --dbname scratch /backups/billing-nightly.dump"}"#,
        takes_ms: 2_400,
        result: "restored 212 tables in 6 min 41 s",
        is_error: false,
    }),
    Beat::Use(Tool {
        name: "Bash",
        intent: "Run the migration there",
        input: r#"{"command": "sqlx migrate run --source migrations/invoices-v2 --database-url $SCRATCH"}"#,
        takes_ms: 2_300,
        result: "Applied 20261118/migrate invoices v2 (3 min 12 s)",
        is_error: false,
    }),
    Beat::Report("The rehearsal ran through in 3 min 12 s"),
];

const COMPARE: &[Beat] = &[
    Beat::Say(
        "It ran without an error. That says little: a migration can be silent about what it \
         drops. Now the comparison that I prepared.",
    ),
    Beat::Use(Tool {
        name: "SQL",
        intent: "The same count and checksum on the migrated copy",
        input: r#"{"database": "scratch", "query": "SELECT count(*), sum(amount_cents), bit_xor(hashtext(id || amount_cents)) FROM invoices_v2"}"#,
        takes_ms: 1_900,
        result: concat!(
            "  count   |  sum           | checksum\n",
            "----------+----------------+-----------\n",
            " 4182318  | 98,211,402,773 | a07714be\n",
            "\n",
            "12 rows fewer",
        ),
        is_error: false,
    }),
    Beat::Use(Tool {
        name: "SQL",
        intent: "Which twelve",
        input: r#"{"database": "scratch", "query": "SELECT id, amount_cents, currency, issued_at FROM invoices WHERE id NOT IN (SELECT id FROM invoices_v2)"}"#,
        takes_ms: 1_500,
        result: concat!(
            "12 rows\n",
            "\n",
            "all with amount_cents = 0, currency NULL, issued 2019-02-28\n",
            "note: 'credited in full, see correspondence'",
        ),
        is_error: false,
    }),
    Beat::Say(
        "Twelve invoices are **missing** afterwards. The sum is the same, which is why nobody \
         would have noticed: they are credited invoices with an amount of zero and no currency, \
         and `currency NOT NULL` in the new schema filters them out.\n\n\
         They are legally relevant until 2029, so I stop here:\n\
         - nothing in production was touched\n\
         - the scratch database is kept for you as `scratch`\n\
         - what I need is a decision: which currency do credited invoices of zero have?",
    ),
];
