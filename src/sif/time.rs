//! Times of images and objects.

use std::fmt;

/// Seconds since 1970-01-01 UTC, as the format stores them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Time(pub i64);

impl Time {
    /// "No time": year 1, which is what a Go program writes for a time that was never set.
    pub const UNSET: Self = Self(-62_135_596_800);

    /// Whether a time was recorded at all.
    pub fn is_unset(self) -> bool {
        self == Self::UNSET
    }
}

/// `2026-11-22 05:44:03 +0000 UTC`, whatever the machine's time zone.
impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (day, second) = (self.0.div_euclid(86_400), self.0.rem_euclid(86_400));
        let (year, month, day) = date_of(day);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(f, "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} +0000 UTC")
    }
}

/// Year, month and day of the day `day` after 1970-01-01, in the Gregorian calendar of all time.
fn date_of(day: i64) -> (i64, i64, i64) {
    const DAYS_OF_400_YEARS: i64 = 146_097;
    // Counted from 2000-03-01, a year ends with its leap day and 400 years repeat.
    let day = day - 11_017;
    let (era, mut day) = (day.div_euclid(DAYS_OF_400_YEARS), day.rem_euclid(DAYS_OF_400_YEARS));
    // The last day of the fourth century (and of the fourth year) is a leap day: it stays in that century (and year).
    let century = (day / 36_524).min(3);
    day -= century * 36_524;
    let leap_cycle = day / 1461;
    day -= leap_cycle * 1461;
    let year_of_cycle = (day / 365).min(3);
    day -= year_of_cycle * 365;
    let mut year = 2000 + era * 400 + century * 100 + leap_cycle * 4 + year_of_cycle;
    const MONTHS_FROM_MARCH: [i64; 12] = [31, 30, 31, 30, 31, 31, 30, 31, 30, 31, 31, 29];
    let mut month = 3;
    for length in MONTHS_FROM_MARCH {
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    if month > 12 {
        month -= 12;
        year += 1;
    }
    (year, month, day + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(seconds: i64, text: &str) {
        assert_eq!(Time(seconds).to_string(), text);
    }

    #[test]
    fn ordinary_times_are_dates_in_utc() {
        check(0, "1970-01-01 00:00:00 +0000 UTC");
        check(1_504_657_553, "2017-09-06 00:25:53 +0000 UTC");
        check(946_702_800, "2000-01-01 05:00:00 +0000 UTC");
    }

    #[test]
    fn leap_days_are_there_when_the_calendar_has_them() {
        check(951_782_400, "2000-02-29 00:00:00 +0000 UTC");
        check(951_868_800, "2000-03-01 00:00:00 +0000 UTC");
        check(1_709_164_800, "2024-02-29 00:00:00 +0000 UTC");
        check(4_107_542_399, "2100-02-28 23:59:59 +0000 UTC");
        check(4_107_542_400, "2100-03-01 00:00:00 +0000 UTC");
    }

    #[test]
    fn the_unset_time_is_the_first_second_of_year_one() {
        check(Time::UNSET.0, "0001-01-01 00:00:00 +0000 UTC");
        check(Time::UNSET.0 - 1, "0000-12-31 23:59:59 +0000 UTC");
    }

    #[test]
    fn the_extremes_have_a_text_too() {
        check(i64::MAX, "292277026596-12-04 15:30:07 +0000 UTC");
        check(i64::MIN, "-292277022657-01-27 08:29:52 +0000 UTC");
    }
}
