use std::collections::BTreeSet;

use super::*;

#[track_caller]
fn duration(text: &str) -> Option<Duration> {
    <Duration as Value>::parse(text).ok()
}

#[test]
fn durations_take_units_or_plain_seconds() {
    for (text, milliseconds) in [
        ("500ms", 500),
        ("10s", 10_000),
        ("10", 10_000),
        ("2m", 120_000),
        ("1h", 3_600_000),
        ("0", 0),
        ("0.1s", 100),
        (" 1.5 s ", 1500),
    ] {
        assert_eq!(duration(text), Some(Duration::from_millis(milliseconds)));
    }
    for text in ["", "s", "10 days", "-1s", "1e9", "1.2.3", "ms10"] {
        assert_eq!(duration(text), None, "{text}");
    }
}

#[test]
fn durations_are_written_as_they_are_read() {
    for text in [
        "0s",
        "1ms",
        "1500ms",
        "60s",
        "90s",
        "2m",
        "1h",
        "8760h",
        "0.0000015s",
    ] {
        let written = duration(text).unwrap();
        assert_eq!(duration(&written.show().unwrap()), Some(written), "{text}");
    }
    assert_eq!(Duration::from_secs(100).show().unwrap(), "100s");
}

#[test]
fn addresses_need_a_port() {
    let address = |text| <Listen as Value>::parse(text);
    assert_eq!(
        address("[::]:1").unwrap(),
        Listen::Tcp("[::]:1".parse().unwrap())
    );
    // A name is not looked up here.
    assert_eq!(
        address("name.invalid:80").unwrap(),
        Listen::Name("name.invalid:80".to_owned())
    );
    assert_eq!(
        address("unix:/run/s").unwrap(),
        Listen::Unix("/run/s".into())
    );
    assert!(address("unix:s").is_err());
    for text in [
        "127.0.0.1",
        "8080",
        ":",
        "::1",
        "[::1]",
        "a b:1",
        "name:99999",
    ] {
        let message = address(text).unwrap_err().to_string();
        assert!(message.contains("HOST:PORT"), "{text}: {message}");
    }
}

#[test]
fn keys_are_parsed_with_their_names_and_never_shown() {
    let keys =
        ApiKeys::parse("search: sixteen-letters!, # the shop\n\nanother-long-key\n").unwrap();
    let named: Vec<&str> = keys.keys().iter().map(|key| key.name.as_str()).collect();
    assert_eq!(named[0], "search");
    assert!(named[1].starts_with("key-"), "{named:?}");
    assert_eq!(keys.keys()[0].key, "sixteen-letters!");
    for shown in [keys.show().unwrap(), format!("{keys:?}")] {
        assert!(
            shown.contains("search") && !shown.contains("letters"),
            "{shown}"
        );
    }
    for wrong in [
        "",
        "# nothing\n",
        "short",
        "a b c",
        "name sixteen-letters!,name another-long-key",
        "a same-key-twice, b same-key-twice",
        "kéy-of-letters-beyond-ascii",
    ] {
        let message = ApiKeys::parse(wrong).unwrap_err().to_string();
        assert!(!message.contains("same-key"), "{message}");
    }
}

#[test]
fn the_log_name_of_an_unnamed_key_depends_on_the_key_alone() {
    let last = |text| {
        ApiKeys::parse(text)
            .unwrap()
            .keys()
            .last()
            .unwrap()
            .name
            .clone()
    };
    let name = last("first-key-of-two, second-key-of-two");
    assert_eq!(last("second-key-of-two"), name);
    assert_ne!(last("first-key-of-two"), name);
    assert!(!name.contains("second") && name.len() == 12, "{name}");
}

#[test]
fn names_are_told_apart() {
    let names: BTreeSet<&str> = Setting::all().iter().map(|setting| setting.name).collect();
    assert_eq!(names.len(), Setting::all().len());
}

/// What a declaration says about its default has to be true.
#[test]
fn every_default_is_one_that_can_be_set() {
    for setting in Setting::all() {
        let mut config = Config::default();
        match setting.default() {
            Some(text) => setting.set(&mut config, &text).unwrap(),
            None => assert!(setting.otherwise.is_some(), "{}: say what is", setting.name),
        }
        assert_eq!(config, Config::default(), "{}", setting.name);
    }
}

#[test]
fn ends_of_ranges_are_within_and_the_next_is_not() {
    let mut config = Config::default();
    let documents = Setting::all().iter().find(|s| s.name == "max_documents");
    let documents = documents.unwrap();
    for (text, taken) in [
        ("1", true),
        ("1000000", true),
        ("0", false),
        ("1000001", false),
    ] {
        assert_eq!(documents.set(&mut config, text).is_ok(), taken, "{text}");
    }
    let message = documents.set(&mut config, "0").unwrap_err().to_string();
    assert_eq!(message, "must be from `1` to `1000000`");
}

#[test]
fn help_begins_with_a_sentence_and_has_no_line_breaks() {
    for setting in Setting::all() {
        assert!(setting.help.ends_with('.'), "{}", setting.name);
        assert!(!setting.help.contains('\n') && !setting.help.contains("  "));
    }
}

#[test]
fn a_number_sign_within_a_key_is_part_of_it() {
    let keys = ApiKeys::parse("abcdefgh#rest-of-key # a comment\n# another-long-comment").unwrap();
    assert_eq!(keys.keys().len(), 1);
    assert_eq!(keys.keys()[0].key, "abcdefgh#rest-of-key");
}

#[test]
fn a_key_is_never_taken_for_a_name() {
    let refused = ApiKeys::parse("s3cret-abc123 production")
        .unwrap_err()
        .to_string();
    assert!(!refused.contains("s3cret"), "{refused}");
}

#[test]
fn origins_that_no_browser_sends_are_refused() {
    for origin in [
        "https://a.example/",
        "https://A.example",
        "a.example",
        "https://",
    ] {
        assert!(Origins::parse(origin).is_err(), "{origin}");
    }
    let origins = Origins::parse("https://a.example, http://[::1]:8080,*").unwrap();
    assert_eq!(origins.len(), 3);
}
