//! The settings of a session: what SET accepts, SHOW shows, and the session obeys.
//!
//! Every setting here has an effect, or has one value only and accepts no other.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono_tz::Tz;
use parking_lot::Mutex;

use super::decode::bool_of;
use super::encode::TextStyle;
use super::error::{NoticeLevel, PgError};
use super::sqlstate as code;
use super::text::FloatDigits;
use crate::catalog::{self, SERVER_VERSION};
use crate::planner::moment;

const SERVER_VERSION_NUM: &str = "150000";

/// What a setting's value may be.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// Cannot be changed.
    ReadOnly,
    Text,
    Bool,
    /// Milliseconds; 0 is off.
    Millis,
    Int(i64, i64),
    /// One of these; what a client may write is compared without case.
    OneOf(&'static [&'static str]),
    ClientEncoding,
    DateStyle,
    TimeZone,
    SearchPath,
}

#[derive(Debug)]
struct Setting {
    /// As Postgres spells it; compared without case.
    name: &'static str,
    default: &'static str,
    kind: Kind,
    description: &'static str,
    /// Told to the client at start and at each change.
    reported: bool,
}

const fn setting(name: &'static str, default: &'static str, kind: Kind, description: &'static str) -> Setting {
    Setting { name, default, kind, description, reported: false }
}

const fn reported(name: &'static str, default: &'static str, kind: Kind, description: &'static str) -> Setting {
    Setting { name, default, kind, description, reported: true }
}

/// Every read in a block sees one tick, so both levels are kept by what REPEATABLE READ promises.
const ISOLATION: Kind = Kind::OneOf(&["read committed", "repeatable read"]);
const ON: Kind = Kind::OneOf(&["on"]);
const OFF: Kind = Kind::OneOf(&["off"]);

/// By name.
static SETTINGS: &[Setting] = &[
    setting("allow_partial", "off", Kind::Bool, "Lets a SELECT see a materialized view that still reads history."),
    reported("application_name", "", Kind::Text, "The name of the client's program, shown in pg_stat_activity."),
    setting("bytea_output", "hex", Kind::OneOf(&["hex"]), "How BYTEA is printed."),
    reported("client_encoding", "UTF8", Kind::ClientEncoding, "The encoding of text that the client sends and reads."),
    setting(
        "client_min_messages",
        "notice",
        Kind::OneOf(&["debug5", "debug4", "debug3", "debug2", "debug1", "log", "notice", "warning", "error"]),
        "The least level of messages that are sent to the client.",
    ),
    reported("DateStyle", "ISO, MDY", Kind::DateStyle, "How dates are printed."),
    setting("default_transaction_deferrable", "off", OFF, "Whether new transactions wait for a safe snapshot."),
    setting("default_transaction_isolation", "repeatable read", ISOLATION, "The isolation of new transactions."),
    reported("default_transaction_read_only", "off", Kind::Bool, "Whether new transactions only read."),
    setting("extra_float_digits", "1", Kind::Int(-15, 3), "Digits of floats: above 0 the shortest exact text."),
    setting(
        "idle_in_transaction_session_timeout",
        "0",
        Kind::Millis,
        "How long a session may be idle in a transaction before it is ended.",
    ),
    setting("idle_session_timeout", "0", Kind::Millis, "How long a session may be idle before it is ended."),
    reported("in_hot_standby", "off", Kind::ReadOnly, "Whether the server follows another."),
    reported("integer_datetimes", "on", Kind::ReadOnly, "Whether times are integers in binary."),
    reported("IntervalStyle", "postgres", Kind::OneOf(&["postgres"]), "How intervals are printed."),
    reported("is_superuser", "on", Kind::ReadOnly, "Whether the user may do everything."),
    setting("jit", "off", OFF, "Whether queries are compiled to machine code."),
    setting("lc_collate", "C", Kind::ReadOnly, "The order of text."),
    setting("lc_ctype", "C", Kind::ReadOnly, "The classes of characters."),
    setting("lock_timeout", "0", Kind::Int(0, 0), "How long a statement waits for locks; there are none."),
    setting(
        "max_identifier_length",
        "63",
        Kind::ReadOnly,
        "The most bytes of a name in Postgres; longer ones are kept.",
    ),
    setting("search_path", "\"$user\", public", Kind::SearchPath, "The schemas in which unqualified names are sought."),
    reported("server_encoding", "UTF8", Kind::ReadOnly, "The encoding of text in the server."),
    reported("server_version", SERVER_VERSION, Kind::ReadOnly, "The version of Postgres that clients may expect."),
    setting("server_version_num", SERVER_VERSION_NUM, Kind::ReadOnly, "The same as a number."),
    reported("session_authorization", "", Kind::ReadOnly, "The user's name."),
    reported("standard_conforming_strings", "on", ON, "Whether backslashes in '...' are ordinary characters."),
    setting("statement_timeout", "0", Kind::Millis, "How long a statement may run before it is cancelled."),
    reported("TimeZone", "UTC", Kind::TimeZone, "The zone in which TIMESTAMPTZ is printed and read."),
    setting("transaction_deferrable", "off", OFF, "Whether the transaction waits for a safe snapshot."),
    setting("transaction_isolation", "repeatable read", ISOLATION, "The isolation of the transaction."),
    setting("transaction_read_only", "off", Kind::Bool, "Whether the transaction only reads."),
];

/// Values that were never set are the defaults.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// What `RESET` goes back to: values of the start-up message.
    initial: BTreeMap<&'static str, String>,
    session: BTreeMap<&'static str, String>,
    /// `SET LOCAL`: until the transaction ends.
    local: BTreeMap<&'static str, String>,
}

impl Settings {
    /// Those of a new session. `options` are the start-up message's.
    pub fn new<'a>(user: &str, options: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Settings, PgError> {
        let mut settings = Settings::default();
        settings.initial.insert("session_authorization", user.to_string());
        for (name, value) in options {
            let setting = find(name)?;
            settings.initial.insert(setting.name, setting.checked(value)?);
        }
        Ok(settings)
    }

    /// `SET name = value`; `None` is DEFAULT.
    pub fn set(&mut self, name: &str, value: Option<&str>, local: bool) -> Result<(), PgError> {
        let setting = find(name)?;
        if matches!(setting.kind, Kind::ReadOnly) {
            // A client may say what is so already.
            if value.is_some_and(|value| value == self.value_of(setting)) {
                return Ok(());
            }
            return Err(PgError::new(
                code::CANT_CHANGE_RUNTIME_PARAM,
                format!("parameter \"{}\" cannot be changed", setting.name),
            ));
        }
        let value = match value {
            Some(value) => setting.checked(value)?,
            None => self.initial.get(setting.name).cloned().unwrap_or_else(|| setting.default.to_string()),
        };
        if local {
            self.local.insert(setting.name, value);
        } else {
            self.local.remove(setting.name);
            self.session.insert(setting.name, value);
        }
        Ok(())
    }

    pub fn reset_all(&mut self) {
        self.session.clear();
        self.local.clear();
    }

    /// Ends what SET LOCAL began.
    pub fn end_transaction(&mut self) {
        self.local.clear();
    }

    /// The value that SHOW prints.
    pub fn show(&self, name: &str) -> Result<&str, PgError> {
        find(name).map(|setting| self.value_of(setting))
    }

    /// Name, value and description of each, as SHOW ALL prints them.
    pub fn all(&self) -> impl Iterator<Item = (&'static str, &str, &'static str)> {
        SETTINGS.iter().map(|setting| (setting.name, self.value_of(setting), setting.description))
    }

    /// Name and value of each that clients are told of.
    pub fn reported(&self) -> impl Iterator<Item = (&'static str, &str)> {
        SETTINGS.iter().filter(|setting| setting.reported).map(|setting| (setting.name, self.value_of(setting)))
    }

    /// The name as it is spelt in SHOW ALL, which heads the column of SHOW.
    pub fn spelling(name: &str) -> Result<&'static str, PgError> {
        find(name).map(|setting| setting.name)
    }

    fn value_of(&self, setting: &Setting) -> &str {
        let value = self.local.get(setting.name).or_else(|| self.session.get(setting.name));
        value.or_else(|| self.initial.get(setting.name)).map_or(setting.default, String::as_str)
    }

    /// A setting of this file by its exact name.
    fn known(&self, name: &'static str) -> &str {
        let setting = SETTINGS.iter().find(|setting| setting.name == name).expect("the name is in SETTINGS");
        self.value_of(setting)
    }

    fn is_on(&self, name: &'static str) -> bool {
        self.known(name) == "on"
    }

    fn duration(&self, name: &'static str) -> Option<Duration> {
        let millis = parse_millis(self.known(name)).unwrap_or(0);
        (millis > 0).then(|| Duration::from_millis(millis))
    }

    pub fn allow_partial(&self) -> bool {
        self.is_on("allow_partial")
    }

    pub fn statement_timeout(&self) -> Option<Duration> {
        self.duration("statement_timeout")
    }

    pub fn idle_timeout(&self, in_transaction: bool) -> Option<Duration> {
        self.duration(if in_transaction { "idle_in_transaction_session_timeout" } else { "idle_session_timeout" })
    }

    pub fn read_only(&self) -> bool {
        self.is_on("transaction_read_only")
    }

    pub fn isolation(&self) -> &str {
        self.known("transaction_isolation")
    }

    pub fn default_read_only(&self) -> bool {
        self.is_on("default_transaction_read_only")
    }

    pub fn default_isolation(&self) -> &str {
        self.known("default_transaction_isolation")
    }

    pub fn zone(&self) -> Tz {
        parse_zone(self.known("TimeZone")).unwrap_or(Tz::UTC)
    }

    pub fn style(&self) -> TextStyle {
        let digits = self.known("extra_float_digits").parse().unwrap_or(1);
        TextStyle { zone: self.zone(), float_digits: FloatDigits(digits) }
    }

    /// Whether the client wants to hear of such a notice.
    pub fn wants(&self, level: NoticeLevel) -> bool {
        match self.known("client_min_messages") {
            "error" => false,
            "warning" => level >= NoticeLevel::Warning,
            _ => true,
        }
    }

    /// The schemas of the search path in order, folded and without quotes.
    pub fn search_path(&self) -> Vec<String> {
        split_names(self.known("search_path")).unwrap_or_default()
    }
}

/// The settings of a session, for the functions of `pg_catalog`.
#[derive(Debug, Default)]
pub struct SessionSettings(pub Mutex<Settings>);

impl catalog::Settings for SessionSettings {
    fn get(&self, name: &str) -> Option<String> {
        self.0.lock().show(name).ok().map(str::to_string)
    }

    fn all(&self) -> Vec<catalog::Setting> {
        let settings = self.0.lock();
        let reset = Settings { initial: settings.initial.clone(), ..Settings::default() };
        let all = SETTINGS.iter().map(|setting| catalog::Setting {
            name: setting.name.to_string(),
            value: settings.value_of(setting).to_string(),
            reset_value: reset.value_of(setting).to_string(),
            description: setting.description.to_string(),
            read_only: matches!(setting.kind, Kind::ReadOnly),
        });
        all.collect()
    }

    fn set(&self, name: &str, value: &str, local: bool) -> Result<String, String> {
        let mut settings = self.0.lock();
        settings.set(name, Some(value), local).map_err(|error| error.message)?;
        settings.show(name).map(str::to_string).map_err(|error| error.message)
    }
}

fn find(name: &str) -> Result<&'static Setting, PgError> {
    SETTINGS
        .iter()
        .find(|setting| setting.name.eq_ignore_ascii_case(name))
        .ok_or_else(|| PgError::new(code::UNDEFINED_OBJECT, format!("unrecognized configuration parameter \"{name}\"")))
}

impl Setting {
    /// The value as it is kept and shown.
    fn checked(&self, value: &str) -> Result<String, PgError> {
        let invalid = || {
            PgError::new(
                code::INVALID_PARAMETER_VALUE,
                format!("invalid value for parameter \"{}\": \"{value}\"", self.name),
            )
        };
        Ok(match self.kind {
            Kind::ReadOnly => {
                return Err(PgError::new(
                    code::CANT_CHANGE_RUNTIME_PARAM,
                    format!("parameter \"{}\" cannot be changed", self.name),
                ));
            }
            Kind::Text => value.to_string(),
            Kind::Bool => match bool_of(value) {
                Some(true) => "on".into(),
                Some(false) => "off".into(),
                None => {
                    return Err(PgError::new(
                        code::INVALID_PARAMETER_VALUE,
                        format!("parameter \"{}\" requires a Boolean value", self.name),
                    ));
                }
            },
            Kind::Millis => show_millis(parse_millis(value).ok_or_else(invalid)?),
            Kind::Int(least, most) => {
                let number: i64 = value.trim().parse().map_err(|_| invalid())?;
                if !(least..=most).contains(&number) {
                    return Err(PgError::new(
                        code::INVALID_PARAMETER_VALUE,
                        format!(
                            "{number} is outside the valid range for parameter \"{}\" ({least} .. {most})",
                            self.name
                        ),
                    ));
                }
                number.to_string()
            }
            Kind::OneOf(values) => {
                // `off` may be written `false` or `0`.
                let written = match (values, bool_of(value)) {
                    (["on"] | ["off"], Some(true)) => "on",
                    (["on"] | ["off"], Some(false)) => "off",
                    _ => value,
                };
                let known = values.iter().find(|known| known.eq_ignore_ascii_case(written));
                known.ok_or_else(|| invalid().hint(format!("Available values: {}.", values.join(", "))))?.to_string()
            }
            Kind::ClientEncoding => {
                let bare: String = value.chars().filter(char::is_ascii_alphanumeric).collect();
                match bare.to_ascii_lowercase().as_str() {
                    "utf8" | "unicode" => "UTF8".into(),
                    _ => return Err(invalid().hint("Available values: UTF8.")),
                }
            }
            Kind::DateStyle => {
                let words = value.split(',').map(|word| word.trim().to_ascii_lowercase());
                if !words.into_iter().all(|word| matches!(word.as_str(), "iso" | "mdy" | "us" | "default")) {
                    return Err(invalid().hint("Available values: \"ISO, MDY\"."));
                }
                "ISO, MDY".into()
            }
            Kind::TimeZone => parse_zone(value).ok_or_else(invalid)?.name().to_string(),
            Kind::SearchPath => {
                split_names(value).ok_or_else(invalid)?;
                value.to_string()
            }
        })
    }
}

/// A number of milliseconds, or with a unit: `90`, `5s`, `1 min`.
fn parse_millis(value: &str) -> Option<u64> {
    let value = value.trim();
    let split = value.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(value.len());
    let (number, unit) = value.split_at(split);
    let factor = match unit.trim() {
        "us" => 0.001,
        "" | "ms" => 1.0,
        "s" => 1_000.0,
        "min" => 60_000.0,
        "h" => 3_600_000.0,
        "d" => 86_400_000.0,
        _ => return None,
    };
    let millis = (number.parse::<f64>().ok()? * factor).round();
    (0.0..=f64::from(i32::MAX)).contains(&millis).then_some(millis as u64)
}

/// In the largest unit that divides it, as Postgres shows it.
fn show_millis(millis: u64) -> String {
    for (unit, name) in [(86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1_000, "s")] {
        if millis > 0 && millis.is_multiple_of(unit) {
            return format!("{}{name}", millis / unit);
        }
    }
    if millis == 0 { "0".into() } else { format!("{millis}ms") }
}

/// A zone by its IANA name, in any case.
fn parse_zone(name: &str) -> Option<Tz> {
    moment::named_zone(name.trim())
}

/// `a, "B"` → a and B. `None` if it is no list of names.
fn split_names(list: &str) -> Option<Vec<String>> {
    let mut names = Vec::new();
    if list.trim().is_empty() {
        return Some(names);
    }
    let mut chars = list.chars().peekable();
    loop {
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        let mut name = String::new();
        if chars.next_if_eq(&'"').is_some() {
            loop {
                match chars.next()? {
                    '"' if chars.next_if_eq(&'"').is_some() => name.push('"'),
                    '"' => break,
                    c => name.push(c),
                }
            }
        } else {
            while let Some(c) = chars.next_if(|c| *c != ',' && *c != '"' && !c.is_whitespace()) {
                name.extend(c.to_lowercase());
            }
            if name.is_empty() {
                return None;
            }
        }
        names.push(name);
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        match chars.next() {
            None => return Some(names),
            Some(',') => {}
            Some(_) => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What SHOW prints after SET, or the error.
    fn check(name: &str, value: &str, expected: &str) {
        let mut settings = Settings::new("me", []).expect("no options");
        let got = match settings.set(name, Some(value), false) {
            Ok(()) => settings.show(name).expect("it is known").to_string(),
            Err(error) => format!("{}: {}", error.code, error.message),
        };
        assert_eq!(got, expected, "SET {name} = {value}");
    }

    #[test]
    fn values_are_checked_and_shown_as_postgres_shows_them() {
        check("statement_timeout", "90000", "90s");
        check("STATEMENT_TIMEOUT", "1 min", "1min");
        check("statement_timeout", "-1", "22023: invalid value for parameter \"statement_timeout\": \"-1\"");
        check("client_encoding", "'utf-8'", "UTF8");
        check("client_encoding", "LATIN1", "22023: invalid value for parameter \"client_encoding\": \"LATIN1\"");
        check("datestyle", "ISO", "ISO, MDY");
        check("datestyle", "German", "22023: invalid value for parameter \"DateStyle\": \"German\"");
        check("timezone", "europe/berlin", "Europe/Berlin");
        check("timezone", "Mars/Base", "22023: invalid value for parameter \"TimeZone\": \"Mars/Base\"");
        check(
            "extra_float_digits",
            "4",
            "22023: 4 is outside the valid range for parameter \"extra_float_digits\" (-15 .. 3)",
        );
        check("allow_partial", "yes", "on");
        check("jit", "false", "off");
        check("jit", "on", "22023: invalid value for parameter \"jit\": \"on\"");
        check("server_version", "16", "55P02: parameter \"server_version\" cannot be changed");
        check("server_version", SERVER_VERSION, SERVER_VERSION);
        check("work_mem", "1GB", "42704: unrecognized configuration parameter \"work_mem\"");
        check("search_path", "a, \"B c\"", "a, \"B c\"");
        check("search_path", "a b", "22023: invalid value for parameter \"search_path\": \"a b\"");
    }

    #[test]
    fn local_values_end_with_the_transaction_and_reset_goes_back_to_the_start() {
        let mut settings = Settings::new("me", [("timezone", "Asia/Tokyo")]).expect("a zone");
        settings.set("timezone", Some("Europe/Paris"), true).expect("a zone");
        assert_eq!(settings.zone(), Tz::Europe__Paris);
        settings.end_transaction();
        assert_eq!(settings.zone(), Tz::Asia__Tokyo);
        settings.set("timezone", Some("UTC"), false).expect("a zone");
        assert_eq!(settings.zone(), Tz::UTC);
        settings.set("timezone", None, false).expect("the default");
        assert_eq!(settings.zone(), Tz::Asia__Tokyo);
        assert_eq!(settings.search_path(), ["$user", "public"]);
        assert_eq!(settings.show("session_authorization").expect("known"), "me");
    }

    #[test]
    fn names_are_in_order_and_defaults_are_valid() {
        assert!(SETTINGS.is_sorted_by_key(|setting| setting.name.to_ascii_lowercase()));
        for setting in SETTINGS.iter().filter(|setting| !matches!(setting.kind, Kind::ReadOnly)) {
            assert_eq!(setting.checked(setting.default).as_deref(), Ok(setting.default), "{}", setting.name);
        }
    }
}
