//! Frames between an agent that has no Redis and a relay.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| protocol::properties::agent_frames(bytes));
