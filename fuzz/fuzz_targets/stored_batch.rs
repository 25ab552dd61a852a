//! Any bytes as a stored chunk, and any bytes as the Arrow stream within one whose checksum is right: an error or a batch,
//! never a panic, and no more memory than a chunk may have. What is read is sent the way of rows and of dead letters.

#![no_main]

use dinnerbell_fuzz::dead_letter;
use dinnerbell_fuzz::encode::chunk;
use libfuzzer_sys::fuzz_target;

fuzz_target!(
    init: {
        // Arrow panics on some streams, and `unpack` makes errors of that. The fuzzer's own hook would end the process
        // there; a panic that gets out of `unpack` still ends it.
        std::panic::set_hook(Box::new(|_| {}));
    },
    |bytes: &[u8]| {
        read(bytes);
        read(&compressed(bytes));
    }
);

fn read(chunk: &[u8]) {
    let Ok(batch) = chunk::unpack(chunk) else { return };
    if let Ok(letters) = dead_letter::from_record_batch(&batch) {
        let again = dead_letter::to_record_batch(&letters).expect("letters can be stored");
        assert_eq!(dead_letter::from_record_batch(&again).expect("letters that were stored"), letters);
    }
    let again = chunk::unpack(&chunk::pack(&batch).expect("a batch that was read can be stored")).expect("it was just packed");
    assert_eq!(again.schema(), batch.schema());
    assert_eq!(again.num_rows(), batch.num_rows());
}

fn compressed(ipc: &[u8]) -> Vec<u8> {
    let mut compressor = zstd::bulk::Compressor::new(1).expect("a compressor");
    compressor.include_checksum(true).expect("a checksum");
    compressor.compress(ipc).expect("it compresses")
}
