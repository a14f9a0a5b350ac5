//! WebSocket frames from a client, wherever the network splits them.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| relay::properties::websocket(bytes));
