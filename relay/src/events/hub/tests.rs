//! Fan-outs: who is given what, whoever leaves, is busy or panics.

use super::*;

/// Counts what it was given.
#[derive(Debug, Default)]
struct Seat {
    given: AtomicUsize,
    is_at_rest: AtomicBool,
    panics: AtomicBool,
}

impl WriteNow for Seat {
    fn write_now(&self, _: u32, _: &mut Vec<TextFrame>) -> bool {
        assert!(!self.panics.load(Ordering::Relaxed), "out of luck");
        self.given.fetch_add(1, Ordering::Relaxed);
        self.is_at_rest.load(Ordering::Relaxed)
    }
}

struct Listening {
    seat: Arc<Seat>,
    wake: Arc<Wake>,
    membership: Membership,
}

impl Listening {
    fn given(&self) -> usize {
        self.seat.given.load(Ordering::Relaxed)
    }
}

fn channel() -> Channel {
    Channel::session("42").unwrap()
}

fn hub() -> Hub {
    Hub::new(&Memory::new(usize::MAX))
}

fn listen(hub: &Hub) -> Listening {
    let (seat, wake) = (Arc::<Seat>::default(), Arc::<Wake>::default());
    seat.is_at_rest.store(true, Ordering::Relaxed);
    let writer: Weak<dyn WriteNow> = Arc::<Seat>::downgrade(&seat);
    wake.set_writer(writer);
    let (membership, _) = hub.join(&channel(), &wake, 0);
    Listening { seat, wake, membership }
}

fn extend(hub: &Hub, n: u64) -> Option<FanOut> {
    let (name, data) = ("e".into(), "1".into());
    let entry = Entry { offset: Offset::of_entry(7, n, n), time_us: n, name, data };
    hub.extend(&channel(), vec![Arc::new(entry)])
}

fn finish(mut fan_out: FanOut) {
    while !fan_out.go_on(&mut Vec::new()) {}
}

#[test]
fn who_leaves_in_a_fan_out_has_nobody_passed_over() {
    let hub = hub();
    let mut listening: Vec<Listening> = (0..200).map(|_| listen(&hub)).collect();
    let mut fan_out = extend(&hub, 1).unwrap();
    assert!(!fan_out.go_on(&mut Vec::new()));

    // Of those who were given it and of those who were not.
    for index in [199, 150, 100, 20, 3, 0] {
        listening.remove(index);
    }
    finish(fan_out);

    assert!(listening.iter().all(|one| one.given() >= 1));
    for (index, one) in listening.iter().enumerate() {
        assert!(one.given() <= 2, "{index}");
    }
}

#[test]
fn what_comes_in_a_fan_out_is_given_to_all_in_the_next() {
    let hub = hub();
    let listening: Vec<Listening> = (0..100).map(|_| listen(&hub)).collect();
    let mut fan_out = extend(&hub, 1).unwrap();
    assert!(extend(&hub, 2).is_none(), "one is under way");
    assert!(!fan_out.go_on(&mut Vec::new()));
    assert!(extend(&hub, 3).is_none());
    finish(fan_out);

    // Those who had it before the third came have it now.
    assert!(listening.iter().all(|one| one.given() == 2));
    assert!(extend(&hub, 4).is_some(), "nobody waits any more");
}

#[test]
fn who_is_not_at_rest_is_woken_and_looks_itself() {
    let hub = hub();
    let (busy, other) = (listen(&hub), listen(&hub));
    busy.seat.is_at_rest.store(false, Ordering::Relaxed);
    finish(extend(&hub, 1).unwrap());
    assert_eq!((busy.given(), other.given()), (1, 1));
    assert_eq!((busy.wake.take_ready(), other.wake.take_ready()), ([0].into(), [].into()));

    // It has not looked yet.
    finish(extend(&hub, 2).unwrap());
    assert_eq!((busy.given(), other.given()), (1, 2));
    busy.membership.listen_again();
    finish(extend(&hub, 3).unwrap());
    assert_eq!((busy.given(), other.given()), (2, 3));
}

#[test]
fn a_panic_in_a_write_concerns_nobody_else() {
    let hub = hub();
    let (broken, other) = (listen(&hub), listen(&hub));
    broken.seat.panics.store(true, Ordering::Relaxed);

    finish(extend(&hub, 1).unwrap());

    assert_eq!(other.given(), 1);
    assert_eq!(broken.wake.take_ready(), [0], "it is woken, and finds out");
}
