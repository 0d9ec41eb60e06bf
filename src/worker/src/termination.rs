//! The last words: JSON of at most 4,096 bytes, whatever happened.

use std::{fs, io, path::Path};

use collect_api::protocol::{MAX_TERMINATION_BYTES, TerminationMessage, WorkResult};

/// The message as bytes that fit. What is only for people gives way first: samples, then the error's tail. The
/// checkpoint goes last: without it the next attempt goes on from the one that the operator has.
pub fn encode(message: &TerminationMessage) -> Vec<u8> {
    let mut message = message.clone();
    for step in 0..5 {
        match step {
            0 => {}
            1 => {
                if let Some(WorkResult::Collect(result)) = &mut message.result {
                    result.tally.samples.clear();
                }
                if let Some(checkpoint) = &mut message.checkpoint {
                    checkpoint.tally.samples.clear();
                }
            }
            2 => shorten(&mut message, 1024),
            3 => shorten(&mut message, 256),
            _ => message.checkpoint = None,
        }
        match serde_json::to_vec(&message) {
            Ok(bytes) if bytes.len() <= MAX_TERMINATION_BYTES => return bytes,
            Ok(_) | Err(_) => {}
        }
    }
    b"{}".to_vec()
}

fn shorten(message: &mut TerminationMessage, bytes: usize) {
    if let Some(error) = &mut message.error {
        error.message.truncate(error.message.floor_char_boundary(bytes));
    }
}

/// Writes the message.
///
/// # Errors
/// When the file can't be written.
pub fn write(path: &Path, message: &TerminationMessage) -> io::Result<()> {
    fs::write(path, encode(message))
}

#[cfg(test)]
mod tests {
    use collect_api::protocol::{Checkpoint, CollectResult, ItemDifference, Tally, WorkError};

    use super::*;

    fn samples() -> Tally {
        let sample = ItemDifference { item: "村".repeat(128), source: 1, collected: 2 };
        Tally { records: 7, samples: vec![sample; 5], ..Tally::default() }
    }

    #[test]
    fn a_message_always_fits_and_keeps_what_matters() {
        let paginator = Some("p".repeat(2048));
        let message = TerminationMessage {
            result: Some(WorkResult::Collect(CollectResult { tally: samples(), ..CollectResult::default() })),
            error: Some(WorkError { reason: "R".into(), message: "错".repeat(1024), retry_after_ms: Some(1) }),
            checkpoint: Some(Checkpoint { seq: 3, paginator, tally: samples(), ..Checkpoint::default() }),
            ..TerminationMessage::default()
        };
        let bytes = encode(&message);
        assert!(bytes.len() <= MAX_TERMINATION_BYTES, "{}", bytes.len());
        let read: TerminationMessage = serde_json::from_slice(&bytes).unwrap();
        assert_eq!((read.checkpoint.unwrap().seq, read.error.unwrap().reason), (3, "R".to_owned()));
        assert!(matches!(read.result, Some(WorkResult::Collect(result)) if result.tally.records == 7));
    }

    #[test]
    fn a_small_message_is_kept_whole() {
        let message = TerminationMessage {
            result: Some(WorkResult::Collect(CollectResult {
                tally: Tally { records: 7, ..Tally::default() },
                ..CollectResult::default()
            })),
            ..TerminationMessage::default()
        };
        assert_eq!(serde_json::from_slice::<TerminationMessage>(&encode(&message)).unwrap(), message);
    }
}
