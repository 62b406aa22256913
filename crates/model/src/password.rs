//! The rule for passwords that tenants choose (spec row B1).

use crate::error::{Code, Refusal};

/// Passwords have 8 to 32 characters of at least three of the kinds upper case, lower case,
/// digit, special; printable ASCII without spaces, so that every client can send them.
///
/// # Errors
/// `password-too-weak` with the rule that is broken. The password itself is never repeated.
pub fn check_password(password: &str) -> Result<(), Refusal> {
    let weak = |detail: &str| {
        Err(Refusal::new(Code::PasswordTooWeak, detail.to_owned()).field("password"))
    };
    if !password.bytes().all(|b| b.is_ascii_graphic()) {
        return weak("the password may hold only printable ASCII characters without spaces");
    }
    if !(8..=32).contains(&password.len()) {
        return weak("the password must have 8 to 32 characters");
    }
    let kinds = [
        password.bytes().any(|b| b.is_ascii_uppercase()),
        password.bytes().any(|b| b.is_ascii_lowercase()),
        password.bytes().any(|b| b.is_ascii_digit()),
        password.bytes().any(|b| b.is_ascii_punctuation()),
    ];
    if kinds.into_iter().filter(|present| *present).count() < 3 {
        return weak(
            "the password must mix at least three of upper case, lower case, digits and special characters",
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_kinds_of_eight_characters_pass() {
        for good in ["Abcdefg1", "abcdef1!", "ABCDEF1!", "Aa1!Aa1!Aa1!Aa1!Aa1!Aa1!Aa1!Aa1!"] {
            assert_eq!(check_password(good), Ok(()), "{good}");
        }
    }

    #[test]
    fn weak_passwords_are_refused_without_being_repeated() {
        for bad in
            ["", "Abcdef1", "abcdefgh", "abcdefg1", "Aa1! Aa1!", "Пароль123!", &"Aa1".repeat(11)]
        {
            let refusal = check_password(bad).expect_err(bad);
            assert_eq!(refusal.code, Code::PasswordTooWeak);
            assert!(bad.is_empty() || !refusal.detail.contains(bad));
        }
    }
}
