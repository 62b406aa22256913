//! Lengths of time as people type them: `90s`, `10m`, `2h`, `1h30m`, `7d`.

use std::time::Duration;

/// Reads a length of time; units `s`, `m`, `h`, `d`, largest first.
///
/// # Errors
/// A sentence for the user.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let invalid = || format!("`{text}` is not a length of time: write it like 90s, 10m or 2h");
    let mut total = 0_u64;
    let mut rest = text.trim();
    let mut smallest = u64::MAX;
    if rest.is_empty() {
        return Err(invalid());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(invalid)?;
        let number: u64 = rest[..digits].parse().map_err(|_| invalid())?;
        let unit = match rest.as_bytes()[digits] {
            b's' => 1,
            b'm' => 60,
            b'h' => 3600,
            b'd' => 86_400,
            _ => return Err(invalid()),
        };
        if unit >= smallest {
            return Err(invalid());
        }
        smallest = unit;
        let seconds = number.checked_mul(unit).ok_or_else(invalid)?;
        total = total.checked_add(seconds).ok_or_else(invalid)?;
        rest = &rest[digits + 1..];
    }
    Ok(Duration::from_secs(total))
}

/// The same, for people to read.
pub(crate) fn show(length: Duration) -> String {
    let mut seconds = length.as_secs();
    let mut text = String::new();
    for (unit, size) in [('d', 86_400), ('h', 3600), ('m', 60), ('s', 1)] {
        if seconds >= size {
            text.push_str(&format!("{}{unit}", seconds / size));
            seconds %= size;
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_read_back_as_written() {
        for (text, seconds) in [("90s", 90), ("10m", 600), ("2h", 7200), ("1h30m", 5400), ("0s", 0)]
        {
            assert_eq!(parse(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        assert_eq!(show(Duration::from_secs(5400)), "1h30m");
    }

    #[test]
    fn nonsense_is_not_a_length_of_time() {
        for text in
            ["", "10", "m", "1.5h", "-1s", "10ms", "1m2h", "1m1m", "99999999999999999999s", "1µ"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
