//! The 256 partitions: each channel is in one, and all keys of a partition share a slot of Redis Cluster.

use std::sync::LazyLock;

use crc::{CRC_16_XMODEM, Crc};

/// The slots of Redis Cluster.
const SLOTS: u16 = 16_384;
/// So many neighbouring slots belong to one partition.
const SLOTS_EACH: u16 = SLOTS / 256;

static TAGS: LazyLock<[u16; 256]> = LazyLock::new(|| {
    let mut tags = [None; 256];
    let mut missing = tags.len();
    for number in 0_u16.. {
        let tag = &mut tags[usize::from(slot(&number.to_string()) / SLOTS_EACH)];
        if tag.is_none() {
            *tag = Some(number);
            missing -= 1;
        }
        if missing == 0 {
            break;
        }
    }
    tags.map(Option::unwrap_or_default)
});

/// The partition of any name: CRC16 (XMODEM, as Redis Cluster uses) modulo 256.
pub fn partition(name: &str) -> u8 {
    (crc16(name) % 256) as u8
}

/// What stands in braces in each key of the partition: the smallest number whose slot is one of the 64 that
/// belong to it. So the partitions are spread evenly, however many nodes share the slots among them. Golden
/// examples: `vectors/partitions.json`.
pub fn partition_tag(partition: u8) -> u16 {
    TAGS[usize::from(partition)]
}

fn slot(tag: &str) -> u16 {
    crc16(tag) % SLOTS
}

fn crc16(text: &str) -> u16 {
    const CRC: Crc<u16> = Crc::<u16>::new(&CRC_16_XMODEM);
    CRC.checksum(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nodes own contiguous ranges of slots.
    #[test]
    fn no_node_has_more_than_its_share_and_one() {
        let slots: Vec<u32> = (0..=u8::MAX)
            .map(|partition| u32::from(slot(&partition_tag(partition).to_string())))
            .collect();
        for (partition, slot) in (0_u32..).zip(&slots) {
            assert_eq!(slot / u32::from(SLOTS_EACH), partition);
        }
        for nodes in 2..=64 {
            for node in 0..nodes {
                let from = u32::from(SLOTS) * node / nodes;
                let to = u32::from(SLOTS) * (node + 1) / nodes;
                let owned = slots.iter().filter(|slot| (from..to).contains(slot)).count() as u32;
                assert!(owned <= 256_u32.div_ceil(nodes) + 1, "{owned} on node {node} of {nodes}");
            }
        }
    }
}
