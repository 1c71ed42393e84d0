use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use langevin::train::progress::Progress;

#[derive(Clone, Default)]
struct Page(Arc<Mutex<Vec<u8>>>);

impl Write for Page {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Page {
    fn lines(&self) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.lines().map(String::from).collect()
    }
}

#[test]
fn plain_lines_tell_position_share_rate_and_message() {
    let page = Page::default();
    let progress = Progress::lines("train", 200, 100, Duration::ZERO, Box::new(page.clone()));
    std::thread::sleep(Duration::from_millis(2));
    progress.update(150, format_args!("loss {:.2}", 0.5));
    progress.note("a note");
    progress.update(200, "");
    progress.finish();
    let lines = page.lines();
    assert_eq!(lines.len(), 4, "{lines:?}");
    assert!(lines[0].starts_with("train  150/200  75 %  "), "{}", lines[0]);
    assert!(lines[0].contains("/s  0 s left") && lines[0].ends_with("  loss 0.50"), "{}", lines[0]);
    assert_eq!(lines[1], "a note");
    assert!(lines[3].starts_with("train  200/200  100 %  ") && lines[3].ends_with(" in 0 s"));
}

#[test]
fn lines_keep_their_distance_and_messages_are_made_only_when_shown() {
    struct Never;
    impl std::fmt::Display for Never {
        fn fmt(&self, _: &mut std::fmt::Formatter) -> std::fmt::Result {
            panic!("formatted without being shown")
        }
    }
    let page = Page::default();
    let progress =
        Progress::lines("sample", 1000, 0, Duration::from_secs(3600), Box::new(page.clone()));
    for position in 1..=1000 {
        progress.update(position, Never);
    }
    assert!(page.lines().is_empty());
    progress.finish();
    assert_eq!(page.lines().len(), 1);
}

#[test]
fn an_interrupted_run_and_an_empty_one_end_without_trouble() {
    let page = Page::default();
    let progress = Progress::lines("train", 10, 4, Duration::ZERO, Box::new(page.clone()));
    progress.finish();
    Progress::lines("sample", 0, 0, Duration::ZERO, Box::new(page.clone())).finish();
    assert_eq!(page.lines(), ["train  4/10  40 %", "sample  0/0"]);
}
