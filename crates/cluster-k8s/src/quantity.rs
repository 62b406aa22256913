//! Kubernetes' quantities of memory, in bytes.

/// Bytes of a quantity such as `128Mi`, `1G`, `1e9`, `1500m` or `1024`; `None` when it is not one.
/// Fractions of a byte are rounded up, as Kubernetes does.
pub(crate) fn bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let split = text
        .find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-')))
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let number: f64 = number.parse().ok()?;
    let factor = match suffix {
        "" => 1.0,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "E" => 1e18,
        "Ki" => 1024.0,
        "Mi" => 1024_f64.powi(2),
        "Gi" => 1024_f64.powi(3),
        "Ti" => 1024_f64.powi(4),
        "Pi" => 1024_f64.powi(5),
        "Ei" => 1024_f64.powi(6),
        exponent => 10_f64.powi(exponent.strip_prefix(['e', 'E'])?.parse().ok()?),
    };
    let bytes = (number * factor).ceil();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked to lie within what a u64 holds"
    )]
    (bytes.is_finite() && (0.0..18_446_744_073_709_551_615.0).contains(&bytes))
        .then_some(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_write_memory_is_understood() {
        for (text, expected) in [
            ("128Mi", 128 << 20),
            ("1Gi", 1 << 30),
            ("16374536Ki", 16_374_536 << 10),
            ("129M", 129_000_000),
            ("1e3", 1000),
            ("1024", 1024),
            ("1500m", 2),
            ("0", 0),
        ] {
            assert_eq!(bytes(text), Some(expected), "{text}");
        }
        for text in ["", "Mi", "-1", "12x", "1ee"] {
            assert_eq!(bytes(text), None, "{text}");
        }
    }
}
