//! Every way in which a pipeline can break, answer by answer.

use super::*;
use tokio::sync::Semaphore;

fn name() -> Name {
    Name::events("session:1".parse().expect("a channel"))
}

/// A pipeline, and Redis' side of it: what it stored, and what was appended.
struct Rig {
    pipeline: Pipeline,
    now: Instant,
    outcomes: Vec<oneshot::Receiver<AppendOutcome>>,
    claims: Vec<Arc<Claim>>,
}

impl Rig {
    fn with(appends: usize) -> Self {
        let mut rig = Self {
            pipeline: Pipeline::begin(name(), 100, false),
            now: Instant::now(),
            outcomes: Vec::new(),
            claims: Vec::new(),
        };
        for index in 0..appends {
            rig.append(index);
        }
        rig
    }

    fn append(&mut self, index: usize) {
        let (answer, outcome) = oneshot::channel();
        let room = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        // An idempotency key, so that every entry is a batch of its own.
        let entry = NewEntry::new("e", index.to_string()).with_key(index.to_string());
        let claim = Arc::<Claim>::default();
        self.claims.push(Arc::clone(&claim));
        self.pipeline.push(vec![entry], 0, &Call::new(answer, 1, room, claim));
        self.outcomes.push(outcome);
    }

    fn send(&mut self) -> Vec<Send> {
        std::iter::from_fn(|| self.pipeline.next(self.now)).collect()
    }

    fn answer(&mut self, send: &Send, n: u64) {
        let place = Place { epoch: 7, n, time_us: 1 };
        let answer = Answer::Appended { place, listeners: 0, known: false };
        self.pipeline.answered(send.sequence, answer, self.now);
    }

    fn settled(&mut self) -> Vec<u64> {
        let outcomes = self.outcomes.iter_mut();
        outcomes.filter_map(|o| Some(o.try_recv().ok()?.unwrap()[0].offset?.n)).collect()
    }
}

fn rows(sends: &[Send]) -> Vec<&str> {
    sends.iter().map(|send| send.rows[0].rsplit(' ').next().unwrap()).collect()
}

#[test]
fn nothing_follows_the_first_append_until_it_is_answered() {
    let mut rig = Rig::with(20);
    let first = rig.send();
    assert_eq!((first.len(), first[0].open, first[0].sequence), (1, true, 1));

    rig.answer(&first[0], 1);

    let more = rig.send();
    assert_eq!(more.len(), IN_FLIGHT);
    assert!(more.iter().all(|send| !send.open));
    assert_eq!(rig.settled(), [1]);
}

#[test]
fn whatever_opens_keeps_too_because_only_then_the_record_gets_its_lifetime() {
    let mut rig = Rig::with(1);
    let first = rig.send();
    assert!(first[0].open && first[0].keeps == Some(KEEP_BYTES));
    rig.answer(&first[0], 1);
    rig.append(1);
    let second = rig.send();
    assert!(!second[0].open && second[0].keeps.is_none());
    rig.answer(&second[0], 2);

    rig.now += RECORD_FOR + Duration::from_secs(1);
    rig.append(2);
    // It begins to wait only now, and was kept a moment ago.
    rig.pipeline.progress_at = rig.now;
    rig.pipeline.kept_at = Some(rig.now);
    rig.pipeline.waiting[0].since = rig.now;

    let late = rig.send();
    assert!(late[0].open && late[0].keeps.is_some());
}

#[test]
fn a_broken_pipeline_is_sent_again_in_order_after_every_answer_is_in() {
    let mut rig = Rig::with(4);
    let first = rig.send();
    rig.answer(&first[0], 1);
    let sent = rig.send();

    rig.pipeline.answered(sent[0].sequence, Answer::Failed, rig.now);
    assert!(rig.send().is_empty(), "two answers are still to come");
    rig.pipeline.answered(sent[1].sequence, Answer::Gap(Some(1)), rig.now);
    rig.pipeline.answered(sent[2].sequence, Answer::Gap(Some(1)), rig.now);

    let again = rig.send();
    assert_eq!(rows(&again), ["1", "2", "3"]);
    let sequences = |sends: &[Send]| sends.iter().map(|send| send.sequence).collect::<Vec<_>>();
    assert_eq!(sequences(&again), sequences(&sent), "the same, so that Redis knows them");
}

#[test]
fn a_lost_answer_in_the_middle_costs_one_retry() {
    let mut rig = Rig::with(4);
    let first = rig.send();
    rig.answer(&first[0], 1);
    let sent = rig.send();

    rig.pipeline.answered(sent[0].sequence, Answer::Failed, rig.now);
    rig.answer(&sent[1], 3);
    rig.answer(&sent[2], 4);

    assert_eq!(rig.settled(), [1], "entries are acknowledged in order");
    let again = rig.send();
    assert_eq!(rows(&again), ["1"]);
    rig.answer(&again[0], 2);
    assert_eq!(rig.settled(), [2, 3, 4]);
}

#[test]
fn what_redis_lost_is_sent_again_from_what_is_kept() {
    let mut rig = Rig::with(3);
    for n in 1..=3 {
        let sent = rig.send();
        rig.answer(&sent[0], n);
        if sent.len() > 1 {
            rig.answer(&sent[1], n + 1);
            break;
        }
    }
    rig.append(3);
    let sent = rig.send();

    rig.pipeline.answered(sent[0].sequence, Answer::Gap(Some(1)), rig.now);

    assert_eq!(rows(&rig.send()), ["1", "2", "3"]);
}

#[test]
fn a_loss_that_nothing_closes_begins_a_new_epoch() {
    let mut rig = Rig::with(1);
    // Without an idempotency key, so that its n counts.
    rig.pipeline.waiting[0].entry.idempotency_key = None;
    let sent = rig.send();
    rig.answer(&sent[0], 1);
    rig.now += KEPT_FOR + Duration::from_secs(1);
    assert!(rig.pipeline.is_idle(rig.now), "nothing is kept any more");
    rig.append(1);
    let sent = rig.send();
    assert!(!sent[0].open, "the record must be there");

    rig.pipeline.answered(sent[0].sequence, Answer::Gap(None), rig.now);

    let again = rig.send();
    assert_eq!((again[0].incarnation, again[0].sequence), (101, 1));
    assert_eq!((again[0].buries, again[0].epoch), (true, 7));
    assert!(again[0].open);
    assert_eq!(rows(&again), ["1"]);
}

#[test]
fn a_refused_batch_leaves_no_hole() {
    let mut rig = Rig::with(3);
    let sent = rig.send();
    rig.answer(&sent[0], 1);
    let sent = rig.send();

    rig.pipeline.answered(sent[0].sequence, Answer::Refused("no".to_owned()), rig.now);
    rig.pipeline.answered(sent[1].sequence, Answer::Gap(Some(1)), rig.now);

    let again = rig.send();
    assert_eq!((rows(&again), again[0].sequence), (vec!["2"], 2));
    assert!(matches!(rig.outcomes[1].try_recv(), Ok(Err(AppendError::Refused(_)))));
}

#[test]
fn after_ten_minutes_the_outcome_is_unknown_and_late_copies_are_fenced_off() {
    let mut rig = Rig::with(1);
    let sent = rig.send();
    rig.now += RETRY_FOR + Duration::from_secs(1);

    rig.pipeline.answered(sent[0].sequence, Answer::Failed, rig.now);

    assert_eq!(rig.outcomes[0].try_recv(), Ok(Err(AppendError::Unavailable)));
    assert_eq!(rig.pipeline.incarnation, 101);
}

#[test]
fn what_never_found_a_connection_fails_after_ten_minutes_too() {
    let mut rig = Rig::with(2);
    rig.now += RETRY_FOR + Duration::from_secs(1);

    assert!(rig.send().is_empty());

    for outcome in &mut rig.outcomes {
        assert_eq!(outcome.try_recv(), Ok(Err(AppendError::NotAppended)));
    }
}

#[test]
fn what_its_caller_took_back_is_not_sent() {
    let mut rig = Rig::with(3);
    let sent = rig.send();
    rig.answer(&sent[0], 1);
    assert!(rig.claims[1].withdraw());

    let sent = rig.send();

    assert_eq!((rows(&sent), sent[0].sequence), (vec!["2"], 2));
    assert!(!rig.claims[2].withdraw(), "it is under way");
}

#[test]
fn what_redis_refused_can_be_taken_back_and_what_it_did_not_answer_cannot() {
    let mut rig = Rig::with(4);
    let sent = rig.send();
    rig.answer(&sent[0], 1);
    let sent = rig.send();
    rig.pipeline.answered(sent[0].sequence, Answer::NotNow, rig.now);
    rig.pipeline.answered(sent[1].sequence, Answer::Failed, rig.now);
    rig.pipeline.answered(sent[2].sequence, Answer::Gap(Some(1)), rig.now);

    assert!(rig.claims[1].withdraw());
    assert!(!rig.claims[2].withdraw());
    assert!(rig.claims[3].withdraw());

    let again = rig.send();
    assert_eq!((rows(&again), again[0].sequence), (vec!["2"], 2));
}

#[test]
fn no_idempotency_key_is_sent_when_it_may_have_run_out() {
    let mut rig = Rig::with(2);
    let sent = rig.send();
    rig.answer(&sent[0], 1);
    rig.now += RETRY_FOR + Duration::from_secs(1);
    // Something was acknowledged just now, so that the pipeline is not given up as a whole.
    rig.pipeline.progress_at = rig.now;

    assert!(rig.send().is_empty());

    assert_eq!(rig.outcomes[1].try_recv(), Ok(Err(AppendError::NotAppended)));
}

/// A producer that numbers its entries; Redis' record, and the numbers that were appended, as the script
/// keeps them.
struct Numbered {
    pipeline: Pipeline,
    outcomes: Vec<oneshot::Receiver<AppendOutcome>>,
}

/// Redis' side of it: the stored sequence, and every number appended.
#[derive(Default)]
struct Stored {
    sequence: Option<u64>,
    appended: Vec<u64>,
    sequences: Vec<u64>,
}

impl Stored {
    fn run(&mut self, send: &Send) -> Answer {
        let place = Place { epoch: 7, n: self.appended.len() as u64 + 1, time_us: 1 };
        if self.sequence == send.before {
            let numbers = send.rows.iter().map(|row| row.rsplit(' ').next().unwrap());
            self.appended.extend(numbers.map(|number| number.parse::<u64>().unwrap()));
            self.sequence = Some(send.sequence);
            self.sequences.push(send.sequence);
            Answer::Appended { place, listeners: 0, known: false }
        } else if self.sequences.contains(&send.sequence) {
            Answer::Appended { place, listeners: 0, known: true }
        } else {
            Answer::Gap(self.sequence)
        }
    }
}

impl Numbered {
    fn with(ids: impl IntoIterator<Item = u64>) -> Self {
        let mut numbered =
            Self { pipeline: Pipeline::begin(name(), 100, true), outcomes: Vec::new() };
        for id in ids {
            numbered.push(id);
        }
        numbered
    }

    fn push(&mut self, id: u64) {
        let (answer, outcome) = oneshot::channel();
        let room = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        let entry = NewEntry::new("e", id.to_string());
        self.pipeline.push(vec![entry], id, &Call::new(answer, 1, room, Arc::default()));
        self.outcomes.push(outcome);
    }

    /// Sends what may be sent; of every answer `lost` says whether it gets lost.
    fn exchange(&mut self, stored: &mut Stored, mut lost: impl FnMut(usize) -> bool) {
        let now = Instant::now();
        let sends: Vec<Send> = std::iter::from_fn(|| self.pipeline.next(now)).collect();
        for (index, send) in sends.iter().enumerate() {
            let answer = stored.run(send);
            let answer = if lost(index) { Answer::Failed } else { answer };
            self.pipeline.answered(send.sequence, answer, now);
        }
    }

    fn all_acknowledged(&mut self) -> bool {
        self.outcomes.iter_mut().all(|outcome| matches!(outcome.try_recv(), Ok(Ok(_))))
    }
}

#[test]
fn numbered_entries_travel_together() {
    let (mut numbered, mut stored) = (Numbered::with(0..0), Stored::default());
    for id in 1..=300 {
        numbered.push(id * 3);
    }
    numbered.exchange(&mut stored, |_| false);
    numbered.exchange(&mut stored, |_| false);
    assert!(numbered.all_acknowledged(), "in two round trips");
    assert_eq!(stored.sequences, [384, 768, 900]);
}

#[test]
fn who_takes_over_sends_what_is_not_stored() {
    for first in 0..=9 {
        let mut stored = Stored::default();
        if first > 0 {
            Numbered::with(1..=first).exchange(&mut stored, |_| true);
        }
        let mut second = Numbered::with(1..=9);
        for _ in 0..2 {
            second.exchange(&mut stored, |_| false);
        }
        assert!(second.all_acknowledged(), "after {first}");
        assert_eq!(stored.appended, (1..=9).collect::<Vec<_>>(), "after {first}");
    }
}

/// Two replicas hold the same calls, and each loses answers.
#[test]
fn two_at_once_append_each_number_once() {
    for seed in 0..500_u64 {
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 33) % below
        };
        let mut stored = Stored::default();
        let mut both = [Numbered::with(0..0), Numbered::with(0..0)];
        let mut pushed = [0, 0];
        for _ in 0..60 {
            let who = next(2) as usize;
            for _ in 0..next(4) {
                if pushed[who] < 30 {
                    pushed[who] += 1;
                    both[who].push(pushed[who]);
                }
            }
            let losing = next(3) == 0;
            both[who].exchange(&mut stored, |index| losing && index % 2 == 0);
        }
        for (numbered, pushed) in both.iter_mut().zip(&mut pushed) {
            while *pushed < 30 {
                *pushed += 1;
                numbered.push(*pushed);
            }
            for _ in 0..10 {
                numbered.exchange(&mut stored, |_| false);
            }
            assert!(numbered.all_acknowledged(), "seed {seed}: {:?}", numbered.pipeline);
        }
        assert_eq!(stored.appended, (1..=30).collect::<Vec<_>>(), "seed {seed}");
    }
}

#[test]
fn numbered_entries_that_redis_lost_are_sent_again_from_what_is_kept() {
    let (mut numbered, mut stored) = (Numbered::with(1..=3), Stored::default());
    numbered.exchange(&mut stored, |_| false);
    stored = Stored::default();
    numbered.push(4);
    for _ in 0..3 {
        numbered.exchange(&mut stored, |_| false);
    }
    assert_eq!(stored.appended, [1, 2, 3, 4]);
    assert!(numbered.all_acknowledged());
}

#[test]
fn a_loss_that_nobody_can_close_begins_a_new_epoch() {
    let mut stored = Stored::default();
    Numbered::with(1..=3).exchange(&mut stored, |_| false);
    let mut numbered = Numbered::with(1..=4);
    numbered.exchange(&mut stored, |_| false);
    numbered.exchange(&mut stored, |_| false);
    stored = Stored::default();
    numbered.push(5);
    numbered.exchange(&mut stored, |_| false);

    let send = numbered.pipeline.next(Instant::now()).expect("what is kept");

    assert_eq!((send.buries, send.before, send.open), (true, None, false));
}

/// The agent comes back to the same replica, which still holds its calls.
#[test]
fn a_number_given_once_more_is_the_same_entry() {
    let (mut numbered, mut stored) = (Numbered::with((1..=4).chain(2..=6)), Stored::default());
    for _ in 0..3 {
        numbered.exchange(&mut stored, |_| false);
    }
    numbered.push(3);
    numbered.exchange(&mut stored, |_| false);

    assert!(numbered.all_acknowledged());
    assert_eq!(stored.appended, (1..=6).collect::<Vec<_>>());
}
