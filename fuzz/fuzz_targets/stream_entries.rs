//! What a stream holds, and ids and places.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| journal::properties::stream_entries(bytes));
