//! Durations as Go writes them, in hours, minutes and seconds.

/// The longest that an invite is good: a week.
const MAX_SECONDS: i64 = 168 * 3600;

/// The seconds of a text such as `15m` or `1h30m`; `None` if it is none, or not between a second and a week.
pub(super) fn seconds(text: &str) -> Option<i64> {
    let mut rest = text;
    let mut total: i64 = 0;
    for (unit, factor) in [('h', 3600), ('m', 60), ('s', 1)] {
        if let Some((number, behind)) = rest.split_once(unit) {
            let digits =
                (1..=6).contains(&number.len()) && number.bytes().all(|b| b.is_ascii_digit());
            let number: i64 = number.parse().ok().filter(|_| digits)?;
            total += number * factor;
            rest = behind;
        }
    }
    (rest.is_empty() && (1..=MAX_SECONDS).contains(&total)).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_within_bounds() {
        for (text, expected) in [
            ("15m", Some(900)),
            ("24h", Some(86_400)),
            ("1h30m", Some(5400)),
            ("1h1m1s", Some(3661)),
            ("168h", Some(604_800)),
            ("169h", None),
            ("0s", None),
            ("", None),
            ("15", None),
            ("m", None),
            ("-5m", None),
            ("+5m", None),
            ("5m5h", None),
            ("9999999999999999s", None),
        ] {
            assert_eq!(seconds(text), expected, "{text}");
        }
    }
}
