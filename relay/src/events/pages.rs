//! Pages of journals, for browsers whose cursor the tail does not reach.
//!
//! A storm of resumes on one channel is one read: of each journal one page is read at a time, and whoever
//! stands in line is answered from what was read meanwhile, where that can be. So whoever is not alone reads
//! from a multiple of [`PAGE`] on, which serves everybody near. What was read for somebody else may be older
//! than the question, so it may only *confirm* a position; to deny one, Redis is asked anew.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use journal::{Journal, Name, Page, Since, Unavailable};
use protocol::Offset;
use tokio::sync::{Mutex as Line, OwnedMutexGuard};

/// Entries in a page.
const PAGE: u64 = 1000;
/// Full pages that are kept for the next one who needs them: at most 16 MiB.
const CACHED: usize = 16;

/// What a subscription wants to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) name: Name,
    pub(crate) since: Since,
    /// The newest position that this replica knows: tells whether a whole page can be asked for.
    pub(crate) head: Option<Offset>,
    /// Nothing was delivered yet.
    pub(crate) is_join: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Pages {
    journal: Journal,
    cache: Arc<Mutex<Cache>>,
}

#[derive(Debug, Default)]
struct Cache {
    /// With how many stand in each.
    lines: HashMap<Name, (usize, Arc<Line<Last>>)>,
    cached: VecDeque<(Name, Arc<Page>)>,
    /// Pages read before the link was last remade are neither kept nor shared.
    generation: u64,
    #[cfg(test)]
    reads: Vec<Since>,
}

/// What was read for the one who stood in front. Nobody holds it while Redis is asked again.
type Last = Option<Read>;

#[derive(Debug)]
struct Read {
    since: Since,
    started: Instant,
    generation: u64,
    page: Arc<Page>,
}

/// A place in the line before a journal; dropping it leaves.
#[derive(Debug)]
struct Place {
    cache: Arc<Mutex<Cache>>,
    name: Name,
    line: Arc<Line<Last>>,
}

impl Pages {
    pub(crate) fn new(journal: Journal) -> Self {
        Self { journal, cache: Arc::default() }
    }

    /// What was read may have changed: a server may have come back with another history.
    pub(crate) fn forget(&self) {
        let mut cache = lock(&self.cache);
        cache.cached.clear();
        cache.generation += 1;
    }

    /// The page that answers the request.
    pub(crate) async fn read(&self, request: &Request) -> Result<Page, Unavailable> {
        let asked = Instant::now();
        if let Some(page) = lock(&self.cache).known(request) {
            return Ok(page);
        }
        let place = Place::take(&self.cache, &request.name);
        let mut last = Arc::clone(&place.line).lock_owned().await;
        let known = {
            let cache = lock(&self.cache);
            let shared = last.as_ref().and_then(|read| read.answer(request, asked, &cache));
            shared.or_else(|| cache.known(request))
        };
        if let Some(page) = known {
            return Ok(page);
        }
        *last = None;
        // A task of its own: whoever asked may leave, and the next in line still comes after the read.
        let reading = self.clone().read_in_turn(request.clone(), place, last);
        tokio::spawn(reading).await.unwrap_or_else(|_| Ok(nothing()))
    }

    async fn read_in_turn(
        self,
        request: Request,
        _place: Place,
        mut last: OwnedMutexGuard<Last>,
    ) -> Result<Page, Unavailable> {
        let shared = lock(&self.cache).shared_start(&request);
        if let (Some(start), Since::Offset(position)) = (shared, request.since) {
            // One more: the last entry of one page is the first of the next, so that every step is checked
            // like a resume.
            let page = self.ask(&request.name, Since::Offset(start), PAGE + 1, &mut last).await?;
            if let Some(page) = continued(&page, &position) {
                return Ok(page);
            }
            *last = None;
        }
        let page = self.ask(&request.name, request.since, PAGE, &mut last).await?;
        Ok((*page).clone())
    }

    async fn ask(
        &self,
        name: &Name,
        since: Since,
        most: u64,
        last: &mut Last,
    ) -> Result<Arc<Page>, Unavailable> {
        let generation = lock(&self.cache).generation;
        let started = Instant::now();
        let page = Arc::new(self.journal.read(name, since, most as usize).await?);
        let mut cache = lock(&self.cache);
        #[cfg(test)]
        cache.reads.push(since);
        // Whether it was cut by entries or by bytes: where the journal goes on, the page is full.
        if page.has_more() && cache.generation == generation {
            cache.cached.push_back((name.clone(), Arc::clone(&page)));
            if cache.cached.len() > CACHED {
                cache.cached.pop_front();
            }
        }
        *last = Some(Read { since, started, generation, page: Arc::clone(&page) });
        Ok(page)
    }
}

impl Cache {
    /// The page that answers the request, where one that was kept confirms its position.
    fn known(&self, request: &Request) -> Option<Page> {
        let Since::Offset(position) = request.since else { return None };
        self.cached_of(&request.name).find_map(|page| continued(page, &position))
    }

    fn cached_of(&self, name: &Name) -> impl Iterator<Item = &Page> {
        self.cached.iter().filter(move |(of, _)| of == name).map(|(_, page)| &**page)
    }

    /// Where to begin so that others are served as well; `None` where nobody else would need the page.
    fn shared_start(&self, request: &Request) -> Option<Offset> {
        let Since::Offset(position) = request.since else { return None };
        let head = request.head.filter(|head| head.epoch == position.epoch)?;
        if position.n >= head.n {
            return None;
        }
        let first = position.n / PAGE * PAGE;
        let is_whole = head.n - first >= PAGE;
        let is_alone = self.lines.get(&request.name).is_none_or(|(standing, _)| *standing == 1);
        if is_alone && !is_whole {
            return None;
        }
        let start = Offset::before(position.epoch, first);
        // Where pages from there on were cut by bytes, the next begins at their end. One that reaches the
        // position and does not confirm it leaves it to Redis.
        let known = self.cached_of(&request.name).filter_map(|page| page.start.zip(page.end()));
        let known = known.filter(|(from, _)| {
            from.epoch == start.epoch && (start.n..=position.n).contains(&from.n)
        });
        let end = known.map(|(_, end)| end).max_by_key(|end| end.n).unwrap_or(start);
        (end.n <= position.n).then_some(end)
    }
}

impl Read {
    /// What this is to whoever has `asked` then.
    fn answer(&self, request: &Request, asked: Instant, cache: &Cache) -> Option<Page> {
        if self.since == request.since && self.started > asked {
            // The same question, put to Redis after it was asked here: even a denial counts.
            return Some((*self.page).clone());
        }
        match request.since {
            Since::Offset(position) if self.generation == cache.generation => {
                continued(&self.page, &position)
            }
            _ => None,
        }
    }
}

impl Place {
    fn take(cache: &Arc<Mutex<Cache>>, name: &Name) -> Self {
        let mut locked = lock(cache);
        let (standing, line) = locked.lines.entry(name.clone()).or_default();
        *standing += 1;
        Self { cache: Arc::clone(cache), name: name.clone(), line: Arc::clone(line) }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut cache = lock(&self.cache);
        if let Some((standing, _)) = cache.lines.get_mut(&self.name) {
            *standing -= 1;
            if *standing == 0 {
                cache.lines.remove(&self.name);
            }
        }
    }
}

/// The part of a page after `position`; `None` where it does not confirm the position, or holds
/// nothing after it.
fn continued(page: &Page, position: &Offset) -> Option<Page> {
    let first = page.entries.first()?.offset;
    let skip = position.n.checked_add(1)?.checked_sub(first.n)? as usize;
    let own = match skip {
        0 => page.start?,
        _ => page.entries.get(skip - 1)?.offset,
    };
    let is_same = own == *position || (own.epoch == position.epoch && position.check == 0);
    let rest = page.entries.get(skip..).filter(|rest| is_same && !rest.is_empty())?;
    Some(Page { reset: None, start: Some(*position), entries: rest.to_vec(), head: page.head })
}

/// What a read that was torn down at shutdown comes to: nothing new.
fn nothing() -> Page {
    Page { reset: None, start: None, entries: Vec::new(), head: None }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no code panics with this lock held")
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use futures_util::future::join_all;
    use journal::{NewEntry, Reason};
    use protocol::Channel;

    use super::*;

    /// A journal of `count` entries of about `bytes` each, and the position of each.
    async fn written(count: usize, bytes: usize) -> (Pages, Name, Vec<Offset>) {
        let (journal, name) = (Journal::in_memory(), Name::events(Channel::session("1").unwrap()));
        let data = format!("\"{}\"", "x".repeat(bytes));
        let entries = (0..count).map(|_| NewEntry::new("x", data.clone())).collect();
        let appended = journal.append(&name, entries).await.unwrap();
        (Pages::new(journal), name, appended.iter().filter_map(|one| one.offset).collect())
    }

    fn request(name: &Name, since: Since, all: &[Offset]) -> Request {
        Request { name: name.clone(), since, head: all.last().copied(), is_join: false }
    }

    fn reads(pages: &Pages) -> usize {
        lock(&pages.cache).reads.len()
    }

    /// Whether the page continues `position`, and so far that a browser gets on.
    fn is_right(page: &Page, position: Offset, all: &[Offset]) -> bool {
        let got: Vec<Offset> = page.entries.iter().map(|entry| entry.offset).collect();
        let start = page.reset.is_none() && page.start == Some(position);
        start && !got.is_empty() && all[position.n as usize..].starts_with(&got)
    }

    /// Reads to the end, taking at most `step` entries of a page at a time, as a browser does.
    async fn walk(pages: &Pages, name: &Name, all: &[Offset], step: usize) {
        let (mut since, mut seen) = (Since::Start, 0);
        while seen < all.len() {
            let page = pages.read(&request(name, since, all)).await.unwrap();
            let taken = &page.entries[..step.min(page.entries.len())];
            seen += taken.len();
            since = Since::Offset(taken.last().unwrap().offset);
        }
    }

    #[tokio::test]
    async fn a_storm_from_all_over_a_journal_reads_each_of_its_pages_once() {
        for (from, expected) in [(2_000, 1), (1_500, 2), (1, 3)] {
            let (pages, name, all) = written(2_500, 10).await;
            let positions = &all[from..2_499];

            let requests: Vec<Request> =
                positions.iter().map(|at| request(&name, Since::Offset(*at), &all)).collect();
            let answers = join_all(requests.iter().map(|request| pages.read(request))).await;

            for (answer, position) in answers.iter().zip(positions) {
                assert!(is_right(answer.as_ref().unwrap(), *position, &all), "{position}");
            }
            assert_eq!(reads(&pages), expected, "from {from}");
        }
    }

    #[tokio::test]
    async fn whoever_is_alone_near_the_head_reads_what_it_needs_and_no_more() {
        let (pages, name, all) = written(900, 10).await;

        let page = pages.read(&request(&name, Since::Offset(all[890]), &all)).await.unwrap();

        assert!(is_right(&page, all[890], &all));
        assert_eq!(lock(&pages.cache).reads, [Since::Offset(all[890])]);
    }

    #[tokio::test]
    async fn pages_that_are_full_by_bytes_are_read_once() {
        let (pages, name, all) = written(50, 100 * 1024).await;
        walk(&pages, &name, &all, 1).await;
        let kept = lock(&pages.cache).cached_of(&name).filter_map(Page::end).last().unwrap();
        lock(&pages.cache).reads.clear();

        walk(&pages, &name, &all, 3).await;

        assert!(kept.n > 30, "full up to {kept}: the test would prove nothing");
        let in_last = |since: &Since| matches!(since, Since::Offset(at) if at.n >= kept.n);
        let reads = lock(&pages.cache).reads.clone();
        assert!(reads[0] == Since::Start && reads[1..].iter().all(in_last), "{reads:?}");
    }

    /// Whichever end it begins at.
    #[tokio::test]
    async fn a_storm_where_bytes_cut_the_pages_is_a_handful_of_reads() {
        for backwards in [false, true] {
            let (pages, name, all) = written(900, 4 * 1024).await;
            let mut requests: Vec<Request> =
                all[..899].iter().map(|at| request(&name, Since::Offset(*at), &all)).collect();
            if backwards {
                requests.reverse();
            }

            let answers = join_all(requests.iter().map(|request| pages.read(request))).await;

            for (answer, request) in answers.iter().zip(&requests) {
                let Since::Offset(position) = request.since else { unreachable!() };
                assert!(is_right(answer.as_ref().unwrap(), position, &all), "{position}");
            }
            // Four pages; where the last comes first, each of them misses it once.
            assert!(reads(&pages) <= 8, "{:?}", lock(&pages.cache).reads);
        }
    }

    #[tokio::test]
    async fn a_position_is_denied_by_the_journal_only_and_asked_anew() {
        let (pages, name, all) = written(1_500, 10).await;
        let right = request(&name, Since::Offset(all[10]), &all);
        let rolled_back = Offset { check: all[10].check ^ 1, ..all[10] };
        let beyond = Offset { n: u64::MAX, ..all[10] };
        let reborn = Offset { epoch: 1, ..all[10] };
        pages.read(&right).await.unwrap();

        for (position, reason) in [
            (rolled_back, Reason::HistoryChanged),
            (beyond, Reason::HistoryChanged),
            (reborn, Reason::Epoch),
        ] {
            let before = reads(&pages);
            let wrong = request(&name, Since::Offset(position), &all);
            let (confirmed, denied, again) =
                tokio::join!(pages.read(&right), pages.read(&wrong), pages.read(&wrong));

            assert!(is_right(&confirmed.unwrap(), all[10], &all));
            let denied = denied.unwrap();
            assert_eq!((denied.reset, denied.entries.len()), (Some(reason), 1_000), "{position}");
            assert_eq!(denied, again.unwrap());
            assert_eq!(reads(&pages), before + 1, "both had asked before the read began");
        }
    }

    #[tokio::test]
    async fn a_read_that_began_before_the_question_denies_nothing() {
        let (pages, name, all) = written(10, 10).await;
        let future = Offset::of_entry(all[0].epoch, 11, 5);
        let wrong = request(&name, Since::Offset(future), &all);
        let (before, page) = (Instant::now(), Arc::new(pages.read(&wrong).await.unwrap()));
        assert_eq!(page.reset, Some(Reason::HistoryChanged));
        let started = Instant::now();
        let read = Read { since: wrong.since, started, generation: 0, page };
        let cache = Cache::default();

        assert_eq!(read.answer(&wrong, started, &cache), None);
        assert_eq!(read.answer(&wrong, before, &cache).as_ref(), Some(&*read.page));
        // What it does hold, it may confirm, and that there is nothing more it may not.
        let held = |at: usize| request(&name, Since::Offset(all[at]), &all);
        assert!(is_right(&read.answer(&held(3), started, &cache).unwrap(), all[3], &all));
        assert_eq!(read.answer(&held(9), started, &cache), None);
        let remade = Cache { generation: 1, ..Cache::default() };
        assert_eq!(read.answer(&held(3), started, &remade), None, "read over another link");
    }

    #[tokio::test]
    async fn what_was_forgotten_is_read_anew() {
        let (pages, name, all) = written(1_500, 10).await;
        let request = request(&name, Since::Offset(all[10]), &all);
        for expected in [1, 1] {
            pages.read(&request).await.unwrap();
            assert_eq!(reads(&pages), expected);
        }

        pages.forget();
        pages.read(&request).await.unwrap();

        assert_eq!(reads(&pages), 2);
    }

    #[tokio::test]
    async fn whoever_leaves_the_line_holds_nobody_up_and_leaves_nothing() {
        let (pages, name, all) = written(10, 10).await;
        let requests = [2, 3, 4].map(|at| request(&name, Since::Offset(all[at]), &all));
        let mut waiting: Vec<_> =
            requests.iter().map(|request| Box::pin(pages.read(request))).collect();
        assert!(waiting.iter_mut().all(|one| one.now_or_never().is_none()), "all stand in line");

        let last = waiting.pop().unwrap();
        drop(waiting);

        assert!(is_right(&last.await.unwrap(), all[4], &all));
        assert!(lock(&pages.cache).lines.is_empty());
    }
}
