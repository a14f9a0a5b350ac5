//! A list from outside, of which only so much is kept.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// The first `MOST` of a list, and how many it has: what is beyond is counted while it is read, and not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted<T, const MOST: usize> {
    /// At most `MOST`.
    pub kept: Vec<T>,
    /// How many there are.
    pub length: usize,
}

impl<'de, T: Deserialize<'de>, const MOST: usize> Deserialize<'de> for Counted<T, MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(CountedVisitor(PhantomData))
    }
}

struct CountedVisitor<T, const MOST: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for CountedVisitor<T, MOST> {
    type Value = Counted<T, MOST>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut kept = Vec::new();
        while kept.len() < MOST {
            match list.next_element()? {
                Some(next) => kept.push(next),
                None => return Ok(Counted { length: kept.len(), kept }),
            }
        }
        let mut length = kept.len();
        while list.next_element::<IgnoredAny>()?.is_some() {
            length += 1;
        }
        Ok(Counted { kept, length })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_beyond_is_counted_and_not_kept() {
        let read = |text: &str| serde_json::from_str::<Counted<u64, 3>>(text);
        for (text, kept, length) in [
            ("[]", vec![], 0),
            ("[1,2]", vec![1, 2], 2),
            ("[1,2,3]", vec![1, 2, 3], 3),
            ("[1,2,3,{\"deep\":[4]},null]", vec![1, 2, 3], 5),
        ] {
            assert_eq!(read(text).unwrap(), Counted { kept, length }, "{text}");
        }
        for text in ["{}", "1", "[1,\"2\"]", "[1,2,3,4", "[1,2,3] 4"] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
