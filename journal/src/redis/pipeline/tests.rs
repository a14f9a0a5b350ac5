//! Every way in which a pipeline can break, answer by answer.

use super::*;
use tokio::sync::Semaphore;

/// A pipeline, and Redis' side of it: what it stored, and what was appended.
struct Rig {
    pipeline: Pipeline,
    now: Instant,
    outcomes: Vec<oneshot::Receiver<AppendOutcome>>,
}

impl Rig {
    fn with(appends: usize) -> Self {
        let mut rig =
            Self { pipeline: Pipeline::new(100), now: Instant::now(), outcomes: Vec::new() };
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
        self.pipeline.push(vec![entry], &Call::new(answer, 1, room));
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
        outcomes.filter_map(|o| Some(o.try_recv().ok()?.unwrap()[0].offset.n)).collect()
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
    assert!(first[0].open && first[0].keeps);
    rig.answer(&first[0], 1);
    rig.append(1);
    let second = rig.send();
    assert!(!second[0].open && !second[0].keeps);
    rig.answer(&second[0], 2);

    rig.now += RECORD_FOR + Duration::from_secs(1);
    rig.append(2);
    // It begins to wait only now, and was kept a moment ago.
    rig.pipeline.progress_at = rig.now;
    rig.pipeline.kept_at = Some(rig.now);

    let late = rig.send();
    assert!(late[0].open && late[0].keeps);
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
    rig.pipeline.waiting[0].0.idempotency_key = None;
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
        assert_eq!(outcome.try_recv(), Ok(Err(AppendError::Unavailable)));
    }
}
