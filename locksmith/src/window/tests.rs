use super::*;
use jiff::civil::{Weekday, date};
use proptest::prelude::*;

impl State {
    /// Whether a reboot may begin.
    fn is_open(self) -> bool {
        !matches!(self, Self::Closed { .. })
    }
}

fn window(start: &str, length: &str) -> Window {
    Window::parse(start, length).unwrap_or_else(|error| panic!("{start} {length}: {error}"))
}

fn zone(name: &str) -> TimeZone {
    TimeZone::get(name).unwrap()
}

/// A moment as `2024-03-10 01:00:00[.frac]±hh`, or without an offset in UTC.
fn at(text: &str) -> Timestamp {
    let text = if text.ends_with('Z') || text[10..].contains(['+', '-']) {
        text.to_owned()
    } else {
        format!("{text}Z")
    };
    text.parse()
        .unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// What the original calls the duration to the start: below zero it is the time since the start of
/// the open window.
fn to_start(schedule: &Schedule, now: Timestamp) -> SignedDuration {
    match schedule.state(now) {
        State::Open { closes } => now.duration_until(closes) - schedule.windows[0].length(),
        State::Closed { opens } => now.duration_until(opens.unwrap()),
        State::Always => panic!("there is a window"),
    }
}

fn check(zone_name: &str, rows: &[(&str, &str, &str, &str)]) {
    for (start, length, now, expected) in rows {
        let schedule = Schedule::new(zone(zone_name), vec![window(start, length)]);
        let found = duration::print(to_start(&schedule, at(now)));
        assert_eq!(&found, expected, "{start:?} {length} at {now}");
    }
}

#[test]
fn windows_open_and_close_as_the_originals_tests_say() {
    let rows = [
        ("00:15", "10s", "2015-05-21 00:00:00", "15m0s"),
        ("00:00", "1h", "2015-05-21 00:00:00", "0s"),
        ("00:00", "1h", "2015-05-21 00:00:01", "-1s"),
        ("02:33", "10h", "2015-05-21 12:33:00", "-10h0m0s"),
        ("02:33", "10h", "2015-05-21 12:33:01", "13h59m59s"),
        ("23:05", "11h", "2015-05-21 09:33:01", "-10h28m1s"),
        ("Thu 00:15", "10s", "2015-05-21 00:00:00", "15m0s"),
        ("Thu 00:00", "1h", "2015-05-21 00:00:00", "0s"),
        ("Sun 00:00", "1h", "2015-05-17 00:00:01", "-1s"),
        ("Sun 02:33", "10h", "2015-05-17 12:33:00", "-10h0m0s"),
        ("Sat 23:05", "11h", "2015-05-17 09:33:01", "-10h28m1s"),
        ("Mon 9:00", "1h", "2015-05-30 23:00:00", "34h0m0s"),
        ("Sun 23:00", "4h", "2015-06-01 01:00:00", "-2h0m0s"),
    ];
    check("UTC", &rows);
}

#[test]
fn the_last_instant_is_open_and_the_next_one_is_not() {
    let rows = [
        ("12:00", "1h", "2015-05-21 13:00:00-04", "-1h0m0s"),
        (
            "12:00",
            "1h",
            "2015-05-21 13:00:00.000000001-04",
            "22h59m59.999999999s",
        ),
        ("02:30", "0s", "2015-05-21 02:30:00-04", "0s"),
        (
            "02:30",
            "0s",
            "2015-05-21 02:30:00.000000001-04",
            "23h59m59.999999999s",
        ),
        ("Sat 12:00", "167h", "2015-05-23 11:30:00-04", "30m0s"),
        ("Sat 12:00", "167h", "2015-05-23 10:30:00-04", "-166h30m0s"),
    ];
    check("America/New_York", &rows);
}

#[test]
fn when_clocks_change_windows_are_where_the_original_has_them() {
    let rows = [
        // 02:30 does not exist: the window is 01:30 EST to 03:30 EDT.
        ("02:30", "1h", "2024-03-10 01:00:00-05", "30m0s"),
        ("02:30", "1h", "2024-03-10 03:15:00-04", "-45m0s"),
        ("02:30", "1h", "2024-03-10 03:45:00-04", "22h45m0s"),
        // 01:30 exists twice: the first one counts.
        ("01:30", "1h", "2024-11-03 01:45:00-04", "-15m0s"),
        ("01:30", "1h", "2024-11-03 01:45:00-05", "23h45m0s"),
        ("Sun 01:30", "2h", "2024-11-03 01:45:00-05", "-1h15m0s"),
        ("Mon 00:00", "1h", "2024-11-02 00:00:00-04", "49h0m0s"),
    ];
    check("America/New_York", &rows);
    // East of Greenwich the same rule gives the later instant both times.
    let rows = [
        ("02:30", "1h", "2024-03-31 00:30:00Z", "1h0m0s"),
        ("02:30", "1h", "2024-10-27 01:15:00Z", "15m0s"),
    ];
    check("Europe/Berlin", &rows);
    // At midnight the start moves to the day before its date.
    let rows = [("00:30", "1h", "2024-03-09 23:45:00-05", "-15m0s")];
    check("America/Havana", &rows);
}

#[test]
fn months_and_years_end_without_effect() {
    let rows = [
        ("00:30", "1h", "2024-02-28 23:00:00", "1h30m0s"),
        ("23:30", "1h", "2024-03-01 00:10:00", "-40m0s"),
        ("Wed 12:00", "1h", "2024-12-31 23:00:00", "13h0m0s"),
    ];
    check("UTC", &rows);
}

/// `open until <last instant>`, `closed until <first instant>` and so on, in UTC.
fn words(state: State) -> String {
    match state {
        State::Always => "always".to_owned(),
        State::Open { closes } => format!("open until {closes}"),
        State::Closed { opens: Some(opens) } => format!("closed until {opens}"),
        State::Closed { opens: None } => "closed for good".to_owned(),
    }
}

#[test]
fn excluded_days_cut_windows_and_windows_that_touch_are_one() {
    let days = |texts: &[&str]| -> Vec<Exclusion> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    };
    let nightly = || vec![window("22:00", "4h")];
    // 25 November 2027 is a Thursday.
    let table: [(Vec<Window>, &[&str], &str, &str); 15] = [
        (vec![], &[], "2027-11-25 12:00:00", "always"),
        (
            vec![],
            &["thu"],
            "2027-11-25 12:00:00",
            "closed until 2027-11-26T00:00:00Z",
        ),
        (
            vec![],
            &["fri"],
            "2027-11-25 12:00:00",
            "open until 2027-11-25T23:59:59.999999999Z",
        ),
        (
            vec![],
            &["2027-11-20..2027-11-29", "tue"],
            "2027-11-25 12:00:00",
            "closed until 2027-12-01T00:00:00Z",
        ),
        (
            nightly(),
            &["2027-11-26"],
            "2027-11-25 23:00:00",
            "open until 2027-11-25T23:59:59.999999999Z",
        ),
        (
            nightly(),
            &["2027-11-26"],
            "2027-11-26 01:00:00",
            "closed until 2027-11-27T00:00:00Z",
        ),
        (
            nightly(),
            &["2027-11-24"],
            "2027-11-24 23:00:00",
            "closed until 2027-11-25T00:00:00Z",
        ),
        (
            nightly(),
            &["2027-11-24"],
            "2027-11-25 01:00:00",
            "open until 2027-11-25T02:00:00Z",
        ),
        (
            nightly(),
            &["2027-11-01..2097-11-30"],
            "2027-11-25 12:00:00",
            "closed until 2097-12-01T00:00:00Z",
        ),
        (
            nightly(),
            &["0001-01-01..9999-12-31"],
            "2027-11-25 12:00:00",
            "closed for good",
        ),
        (
            vec![window("Thu 10:00", "1h")],
            &["thu"],
            "2027-11-25 10:00:00",
            "closed for good",
        ),
        (
            vec![window("Thu 10:00", "1h"), window("Sat 10:00", "1h")],
            &["thu"],
            "2027-11-25 10:00:00",
            "closed until 2027-11-27T10:00:00Z",
        ),
        (
            vec![
                window("10:00", "1h"),
                window("10:30", "1h"),
                window("11:30", "10m"),
            ],
            &[],
            "2027-11-25 10:00:00",
            "open until 2027-11-25T11:40:00Z",
        ),
        (
            vec![window("Thu 10:00", "1h"), window("12:00", "1h")],
            &[],
            "2027-11-25 11:00:00.000000001",
            "closed until 2027-11-25T12:00:00Z",
        ),
        (
            vec![window("Wed 23:00", "50h")],
            &["thu"],
            "2027-11-24 23:30:00",
            "open until 2027-11-24T23:59:59.999999999Z",
        ),
    ];
    for (windows, excluded, now, expected) in table {
        let schedule = Schedule::new(TimeZone::UTC, windows).without(days(excluded));
        assert_eq!(
            words(schedule.state(at(now))),
            expected,
            "{:?} at {now}",
            schedule.describe()
        );
    }
}

#[test]
fn a_schedule_that_never_closes_ends_somewhere_after_the_look_ahead() {
    let now = at("2027-11-25 12:00:00");
    let schedule = Schedule::new(
        TimeZone::UTC,
        vec![window("00:00", "23h59m"), window("23:30", "1h")],
    );
    let State::Open { closes } = schedule.state(now) else {
        panic!("{:?}", schedule.state(now))
    };
    assert!(
        closes - now >= LOOK_AHEAD && closes - now < LOOK_AHEAD + SignedDuration::from_hours(49)
    );
    assert!(schedule.state(closes).is_open());
}

#[test]
fn machines_spread_over_a_window_and_each_keeps_its_place() {
    let plain = Schedule::new(
        TimeZone::UTC,
        vec![window("12:00", "1h"), window("18:00", "10m")],
    );
    let most = Duration::from_secs(30 * 60);
    let now = at("2027-11-25 12:00:00");
    let opening = |schedule: &Schedule, now| schedule.first_open(now).unwrap();
    let mut seen = [0_u32; 3];
    for number in 0..3000 {
        let machine = MachineId::new(&format!("machine-{number}"));
        let delayed = plain.clone().delayed(most, &machine);
        let opens = opening(&delayed, now);
        assert_eq!(
            opens,
            opening(&plain.clone().delayed(most, &machine), opens)
        );
        let minutes = (opens - now).as_mins();
        assert!((0..=30).contains(&minutes), "{minutes}");
        seen[usize::try_from(minutes / 10).unwrap().min(2)] += 1;
        let evening = at("2027-11-25 18:00:00");
        let late = opening(&delayed, evening) - evening;
        assert!(
            late <= SignedDuration::from_mins(10),
            "never past the window's end"
        );
        assert_eq!(
            words(delayed.state(opens)),
            "open until 2027-11-25T13:00:00Z",
            "the end stays where it is"
        );
    }
    assert!(
        seen.iter().all(|&machines| (850..1150).contains(&machines)),
        "{seen:?}"
    );

    let machine = MachineId::new("7c1d2f");
    let delayed = plain.delayed(most, &machine);
    let first = opening(&delayed, now) - now;
    let tomorrow = at("2027-11-26 12:00:00");
    assert_ne!(
        first,
        opening(&delayed, tomorrow) - tomorrow,
        "another place each day"
    );
    assert_eq!(
        duration::print(first),
        "27m55s",
        "machines keep their places across versions"
    );
}

#[test]
fn logs_say_what_the_original_says_and_then_what_is_ours() {
    let utc = |windows| Schedule::new(TimeZone::UTC, windows);
    assert_eq!(utc(vec![]).describe(), ["No configured reboot window"]);
    let schedule = utc(vec![window("09:00", "1h")]);
    assert_eq!(
        schedule.describe(),
        [r#"Reboot window start is "09:00" and length is "1h""#]
    );
    let ours = utc(vec![window("09:00", "1h"), window("sat 2:0", "90m")])
        .without(vec!["2027-12-24".parse().unwrap(), "sun".parse().unwrap()])
        .delayed(Duration::from_secs(1800), &MachineId::new("x"));
    assert_eq!(
        ours.describe()[1..],
        [
            r#"Reboot window start is "sat 2:0" and length is "90m""#,
            "Reboots begin up to 30m0s into a window",
            "No reboots on 2027-12-24, sun",
        ]
    );
}

/// A window whose start exists once on every day in New York, unless it is taken at 01:xx, where
/// the first of two counts, with everything in whole minutes.
fn any_window() -> impl Strategy<Value = (Option<i8>, i8, i8, i64)> {
    (prop::option::of(0_i8..7), 0_i8..24, 0_i8..60, 0_i64..1440)
        .prop_filter("02:xx may not exist", |&(_, hour, ..)| hour != 2)
        .prop_map(|(day, hour, minute, length)| {
            (
                day,
                hour,
                minute,
                if day.is_some() { length * 6 } else { length },
            )
        })
}

const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

/// Whether a minute is open, found by walking back over every minute of the longest window.
fn naively_open(
    zone: &TimeZone,
    windows: &[(Option<i8>, i8, i8, i64)],
    excluded: &[Exclusion],
    now: Timestamp,
) -> bool {
    let today = zone.to_datetime(now).date();
    if excluded.iter().any(|exclusion| match exclusion {
        Exclusion::Dates { first, last } => (*first..=*last).contains(&today),
        Exclusion::Weekday(day) => *day == today.weekday(),
    }) {
        return false;
    }
    if windows.is_empty() {
        return true;
    }
    windows.iter().any(|&(day, hour, minute, length)| {
        (0..=length).any(|back| {
            let then = now - SignedDuration::from_mins(back);
            let local = zone.to_datetime(then);
            let an_hour_before = zone.to_datetime(then - SignedDuration::from_hours(1));
            local.hour() == hour
                && local.minute() == minute
                && local != an_hour_before
                && day.is_none_or(|day| local.weekday().to_monday_zero_offset() == day)
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn every_minute_is_as_a_naive_walk_finds_it(
        windows in prop::collection::vec(any_window(), 0..4),
        weekday in prop::option::of(1_i8..=7),
        range in prop::option::of((0_i64..6, 0_i64..4)),
        zone_name in prop::sample::select(vec!["UTC", "America/New_York", "Asia/Kolkata"]),
        // Around both changes of the clocks in New York, and an ordinary month.
        base in prop::sample::select(vec!["2024-03-08", "2024-11-01", "2024-06-03"]),
        minutes in prop::collection::vec(0_i64..5 * 1440, 6),
    ) {
        let zone = zone(zone_name);
        let base: Date = base.parse().unwrap();
        let mut excluded: Vec<Exclusion> = weekday
            .map(|day| Exclusion::Weekday(Weekday::from_monday_one_offset(day).unwrap()))
            .into_iter()
            .collect();
        if let Some((from, more)) = range {
            let first = base + SignedDuration::from_hours(24 * from);
            let last = first + SignedDuration::from_hours(24 * more);
            excluded.push(Exclusion::Dates { first, last });
        }
        let parsed = windows.iter().map(|&(day, hour, minute, length)| {
            let day = day.map_or("", |day| DAYS[usize::try_from(day).unwrap()]);
            window(&format!("{day} {hour}:{minute}"), &format!("{length}m"))
        });
        let schedule = Schedule::new(zone.clone(), parsed.collect()).without(excluded.clone());
        let start = zone.to_timestamp(base.at(0, 0, 0, 0)).unwrap();
        let naive = |now| naively_open(&zone, &windows, &excluded, now);
        for minute in minutes {
            let now = start + SignedDuration::from_mins(minute);
            let state = schedule.state(now);
            prop_assert_eq!(state.is_open(), naive(now), "{:?} at {}", schedule.describe(), now);
            let edge = match state {
                State::Always | State::Closed { opens: None } => continue,
                State::Open { closes } => {
                    prop_assert!(closes >= now);
                    prop_assert!(schedule.state(closes).is_open());
                    if closes - now < LOOK_AHEAD {
                        prop_assert!(!schedule.state(closes + NANOSECOND).is_open());
                    }
                    closes
                }
                State::Closed { opens: Some(opens) } => {
                    prop_assert!(opens > now);
                    prop_assert!(schedule.state(opens).is_open());
                    prop_assert!(!schedule.state(opens - NANOSECOND).is_open());
                    opens
                }
            };
            // Nothing happens on the way to the edge.
            let most = (edge - now).as_mins().clamp(1, 2 * 1440);
            for part in 0..8 {
                let between = now + SignedDuration::from_mins(most * part / 8);
                if between < edge {
                    prop_assert_eq!(naive(between), state.is_open(), "{} before {}", between, edge);
                }
            }
        }
    }

    #[test]
    fn a_delay_changes_the_beginning_alone(
        windows in prop::collection::vec(any_window(), 1..4),
        most in 0_u64..20_000,
        machine in "[a-f0-9]{8}",
        minute in 0_i64..20 * 1440,
    ) {
        let parsed = windows.iter().map(|&(_, hour, minute, length)| {
            window(&format!("{hour}:{minute}"), &format!("{}m", length % 1440))
        });
        let plain = Schedule::new(zone("America/New_York"), parsed.collect());
        let delayed = plain.clone().delayed(Duration::from_secs(most), &MachineId::new(&machine));
        let now = at("2024-03-05 00:00:00") + SignedDuration::from_mins(minute);
        let opens = delayed.first_open(now).unwrap();
        prop_assert!(plain.state(opens).is_open());
        let first = plain.first_open(now).unwrap();
        let most = SignedDuration::from_secs(i64::try_from(most).unwrap());
        // `now` may lie in the delay of an earlier occurrence, whose end is past by then.
        prop_assert!(opens >= first && (opens - first <= most || plain.state(now).is_open()));
    }

    #[test]
    fn any_moment_in_any_zone_has_a_state(
        second in any::<i64>(),
        extreme in any::<bool>(),
        windows in prop::collection::vec(any_window(), 0..3),
        zone_name in prop::sample::select(vec![
            "UTC", "America/Havana", "Pacific/Apia", "Africa/Monrovia", "Asia/Manila",
            "America/Juneau", "America/Goose_Bay", "Antarctica/Troll",
        ]),
        exclusions in prop::collection::vec(prop::sample::select(vec![
            "mon", "sat", "2011-12-30", "0001-01-01..9999-12-31", "1910-01-01..1920-01-01",
        ]), 0..3),
    ) {
        let span = if extreme { 1 << 40 } else { 1 << 32 };
        let now = Timestamp::from_second(second % span).unwrap_or(Timestamp::MAX);
        let parsed = windows.iter().map(|&(day, hour, minute, length)| {
            let day = day.map_or("", |day| DAYS[usize::try_from(day).unwrap()]);
            window(&format!("{day} {hour}:{minute}"), &format!("{length}m"))
        });
        let schedule = Schedule::new(zone(zone_name), parsed.collect())
            .without(exclusions.iter().map(|text| text.parse().unwrap()).collect())
            .delayed(Duration::from_secs(600), &MachineId::new("x"));
        for now in [now, Timestamp::MIN, Timestamp::MAX] {
            match schedule.state(now) {
                State::Open { closes } => prop_assert!(closes >= now),
                State::Closed { opens: Some(opens) } => {
                    prop_assert!(opens > now && schedule.state(opens).is_open());
                }
                State::Always | State::Closed { opens: None } => {}
            }
        }
    }
}

#[test]
fn the_day_that_a_zone_left_out_is_no_obstacle() {
    // Apia went from the 29th to the 31st of December 2011.
    let schedule = Schedule::new(zone("Pacific/Apia"), vec![window("12:00", "1h")])
        .without(vec!["2011-12-31".parse().unwrap()]);
    let now = zone("Pacific/Apia")
        .to_timestamp(date(2011, 12, 29).at(13, 30, 0, 0))
        .unwrap();
    let State::Closed { opens: Some(opens) } = schedule.state(now) else {
        panic!("{:?}", schedule.state(now))
    };
    assert_eq!(
        zone("Pacific/Apia").to_datetime(opens),
        date(2012, 1, 1).at(12, 0, 0, 0)
    );
}
