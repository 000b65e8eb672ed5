#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| chatmesh_fuzz::records(data));
