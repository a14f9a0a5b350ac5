//! Pages of journals, for browsers whose cursor the tail does not reach.
//!
//! Many resumes at once on one channel share reads ([`SingleFlight`]): a waiter is answered from a read that was
//! made meanwhile, if that read covers its position. So a read that others wait for as well begins at a multiple
//! of [`PAGE`], which serves all positions nearby. What was read for another waiter may be older than the
//! question, so it may only *confirm* a position; before a position is denied, Redis is asked anew.

use std::collections::VecDeque;
use std::sync::Arc;

use futures_util::FutureExt;
use journal::{Journal, Name, Page, Since};
use protocol::Offset;

use super::single_flight::{Asked, ReadError, Reading, SingleFlight, Source, Turn};

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

#[derive(Debug)]
pub(crate) struct Pages(SingleFlight<PageSource>);

#[derive(Debug)]
struct PageSource {
    journal: Journal,
    cached: VecDeque<(Name, Arc<Page>)>,
    #[cfg(test)]
    reads: Vec<Since>,
}

#[derive(Debug)]
struct PageRead {
    name: Name,
    since: Since,
    page: Arc<Page>,
}

impl Pages {
    pub(crate) fn new(journal: Journal) -> Self {
        Self(SingleFlight::new(PageSource::new(journal)))
    }

    /// What was read may have changed: a server may have come back with another history.
    pub(crate) fn forget(&self) {
        self.0.forget(None, |source| source.cached.clear());
    }

    /// The page that answers the request.
    pub(crate) async fn read(&self, request: &Request) -> Result<Page, ReadError> {
        self.0.read(request).await
    }
}

impl Source for PageSource {
    type Key = Name;
    type Question = Request;
    type Read = PageRead;
    type Answer = Page;

    fn key(request: &Request) -> Name {
        request.name.clone()
    }

    /// The page that answers the request, where one that was kept confirms its position.
    fn known(&self, request: &Request) -> Option<Page> {
        let Since::Offset(position) = request.since else { return None };
        self.cached_of(&request.name).find_map(|page| continued(page, &position))
    }

    fn begin(&mut self, turn: &Turn<'_, Request>) -> Reading<PageRead> {
        let name = turn.first.name.clone();
        let (since, most) = match self.shared_start(turn) {
            // One more: the last entry of one page is the first of the next, so that every step is checked
            // like a resume.
            Some(start) => (Since::Offset(start), PAGE + 1),
            None => (turn.first.since, PAGE),
        };
        #[cfg(test)]
        self.reads.push(since);
        let journal = self.journal.clone();
        async move {
            let page = Arc::new(journal.read(&name, since, most as usize).await?);
            Ok(PageRead { name, since, page })
        }
        .boxed()
    }

    fn keep(&mut self, read: &PageRead) {
        // Whether it was cut by entries or by bytes: where the journal goes on, the page is full.
        if read.page.has_more() {
            self.cached.push_back((read.name.clone(), Arc::clone(&read.page)));
            if self.cached.len() > CACHED {
                self.cached.pop_front();
            }
        }
    }

    fn answer(&self, read: &PageRead, request: &Request, asked: Asked) -> Option<Page> {
        if read.since == request.since && asked.before {
            // The same question, put to Redis after it was asked here: even a denial counts.
            return Some((*read.page).clone());
        }
        match request.since {
            Since::Offset(position) if !asked.is_forgotten => continued(&read.page, &position),
            _ => None,
        }
    }
}

impl PageSource {
    fn new(journal: Journal) -> Self {
        Self {
            journal,
            cached: VecDeque::new(),
            #[cfg(test)]
            reads: Vec::new(),
        }
    }

    fn cached_of(&self, name: &Name) -> impl Iterator<Item = &Page> {
        self.cached.iter().filter(move |(of, _)| of == name).map(|(_, page)| &**page)
    }

    /// Where to begin so that others are served as well; `None` where nobody else would need the page, or where
    /// such a page did not confirm the position.
    fn shared_start(&self, turn: &Turn<'_, Request>) -> Option<Offset> {
        let Since::Offset(position) = turn.first.since else { return None };
        let head = turn.first.head.filter(|head| head.epoch == position.epoch)?;
        if turn.is_second_try || position.n >= head.n {
            return None;
        }
        let first = position.n / PAGE * PAGE;
        let is_whole = head.n - first >= PAGE;
        if turn.waiting == 1 && !is_whole {
            return None;
        }
        let start = Offset::before(position.epoch, first);
        // Where pages from there on were cut by bytes, the next begins at their end. One that reaches the
        // position and does not confirm it leaves it to Redis.
        let known = self.cached_of(&turn.first.name).filter_map(|page| page.start.zip(page.end()));
        let known = known.filter(|(from, _)| {
            from.epoch == start.epoch && (start.n..=position.n).contains(&from.n)
        });
        let end = known.map(|(_, end)| end).max_by_key(|end| end.n).unwrap_or(start);
        (end.n <= position.n).then_some(end)
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
    Some(Page {
        reset: None,
        truncated: false,
        start: Some(*position),
        entries: rest.to_vec(),
        head: page.head,
    })
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
        pages.0.look(|source, _| source.reads.len())
    }

    fn all_reads(pages: &Pages) -> Vec<Since> {
        pages.0.look(|source, _| source.reads.clone())
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
    async fn a_lone_reader_near_the_head_reads_what_it_needs_and_no_more() {
        let (pages, name, all) = written(900, 10).await;

        let page = pages.read(&request(&name, Since::Offset(all[890]), &all)).await.unwrap();

        assert!(is_right(&page, all[890], &all));
        assert_eq!(all_reads(&pages), [Since::Offset(all[890])]);
    }

    #[tokio::test]
    async fn pages_that_are_full_by_bytes_are_read_once() {
        let (pages, name, all) = written(50, 100 * 1024).await;
        walk(&pages, &name, &all, 1).await;
        let kept = pages.0.look(|source, _| {
            source.reads.clear();
            source.cached_of(&name).filter_map(Page::end).last().unwrap()
        });

        walk(&pages, &name, &all, 3).await;

        assert!(kept.n > 30, "full up to {kept}: the test would prove nothing");
        let in_last = |since: &Since| matches!(since, Since::Offset(at) if at.n >= kept.n);
        let reads = all_reads(&pages);
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
            assert!(reads(&pages) <= 8, "{:?}", all_reads(&pages));
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
        let page = Arc::new(pages.read(&wrong).await.unwrap());
        assert_eq!(page.reset, Some(Reason::HistoryChanged));
        let read = PageRead { name: name.clone(), since: wrong.since, page };
        let source = PageSource::new(Journal::in_memory());
        let asked = |before| Asked { before, is_forgotten: false };

        assert_eq!(source.answer(&read, &wrong, asked(false)), None);
        assert_eq!(source.answer(&read, &wrong, asked(true)).as_ref(), Some(&*read.page));
        // What it does hold, it may confirm, and that there is nothing more it may not.
        let held = |at: usize| request(&name, Since::Offset(all[at]), &all);
        let confirmed = source.answer(&read, &held(3), asked(false));
        assert!(is_right(&confirmed.unwrap(), all[3], &all));
        assert_eq!(source.answer(&read, &held(9), asked(false)), None);
        let remade = Asked { before: true, is_forgotten: true };
        assert_eq!(source.answer(&read, &held(3), remade), None, "read over another link");
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
    async fn who_leaves_the_line_holds_nobody_up_and_leaves_nothing() {
        let (pages, name, all) = written(10, 10).await;
        let requests = [2, 3, 4].map(|at| request(&name, Since::Offset(all[at]), &all));
        let mut waiting: Vec<_> =
            requests.iter().map(|request| Box::pin(pages.read(request))).collect();
        assert!(waiting.iter_mut().all(|one| one.now_or_never().is_none()), "all stand in line");

        let last = waiting.pop().unwrap();
        drop(waiting);

        assert!(is_right(&last.await.unwrap(), all[4], &all));
        assert_eq!(pages.0.look(|_, lines| lines), 0);
    }
}
