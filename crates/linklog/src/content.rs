//! How a value lies in its file: padded to whole blocks, so that the file of any value has the
//! room of another one.

use std::io;

/// Files are a multiple of this long: a block of the usual file systems. Records have some hundred
/// bytes.
pub(crate) const BLOCK: usize = 4096;

/// Ends the value; what follows is padding.
const END: u8 = b'\n';
/// White space to JSON, so that a reader who knows nothing of padding reads the same value.
const PADDING: u8 = b' ';

/// `bytes` with their end and the padding up to whole blocks.
pub(crate) fn padded(bytes: &[u8]) -> Vec<u8> {
    let length = (bytes.len() + 1).next_multiple_of(BLOCK);
    let mut padded = Vec::with_capacity(length);
    padded.extend_from_slice(bytes);
    padded.push(END);
    padded.resize(length, PADDING);
    padded
}

/// Padding for a file that is longer than the content has to be.
///
/// # Errors
/// `StorageFull` when the file is shorter.
pub(crate) fn fit(mut padded: Vec<u8>, length: u64) -> io::Result<Vec<u8>> {
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if padded.len() > length {
        return Err(io::ErrorKind::StorageFull.into());
    }
    padded.resize(length, PADDING);
    Ok(padded)
}

/// The value of a file. One without padding is the value itself.
pub(crate) fn value(mut file: Vec<u8>) -> Vec<u8> {
    let end = file.iter().rposition(|byte| *byte != PADDING);
    if let Some(end) = end.filter(|end| file[*end] == END) {
        file.truncate(end);
    }
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_value_is_read_back_exactly() {
        let long = vec![b' '; 3 * BLOCK];
        let values: [&[u8]; 9] =
            [b"", b" ", b"\n", b"a", b"a \n", b"a\n ", b"\n\n  ", &long, &long[..BLOCK - 1]];
        for bytes in values {
            let file = padded(bytes);
            assert_eq!(file.len() % BLOCK, 0);
            assert_eq!(value(file.clone()), bytes);
            let longer = fit(file, 8 * BLOCK as u64).unwrap();
            assert_eq!(longer.len(), 8 * BLOCK);
            assert_eq!(value(longer), bytes);
        }
    }

    #[test]
    fn a_file_without_padding_is_its_own_value() {
        assert_eq!(value(b"{\"epoch\":1}".to_vec()), b"{\"epoch\":1}");
        assert_eq!(value(Vec::new()), b"");
    }

    #[test]
    fn a_value_that_does_not_fit_says_that_there_is_no_room() {
        let error = fit(padded(&[0; BLOCK]), BLOCK as u64).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}
