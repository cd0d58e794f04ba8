//! The images that tests run.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result};
use segue_image::{App, AppReport, build_app, keys};
use segue_kernel::image::{PublicKey, testing};

/// An image's files.
pub struct Image {
    /// For HVM domains.
    pub img: PathBuf,
    /// For PVH domains.
    pub elf: PathBuf,
    /// For upgrades.
    pub bundle: PathBuf,
    /// Length of the `.img` file, bytes.
    pub img_len: u64,
    /// What the image calls itself: `NAME-VERSION`.
    pub ident: String,
}

/// All of them.
pub struct Images {
    /// The smallest app.
    pub hello: Image,
    /// Tells the time.
    pub clock: Image,
    /// Its next version.
    pub clock_next: Image,
    /// The bundles of both versions, one after the other.
    pub clock_bundles: PathBuf,
    /// Checks that nothing of the old image is written to.
    pub sentinel: Image,
    /// Tries all that can go wrong.
    pub gauntlet: Image,
    /// The same, and trusts a key: takes and refuses what it should.
    pub gauntlet_trusting: Image,
    /// Drives threads, locks and clocks by std's interface.
    pub stdtest: Image,
    /// The same as another version.
    pub stdtest_next: Image,
    /// The bundles of both, and of `gauntlet`, one after the other.
    pub stdtest_bundles: PathBuf,
    /// The web server.
    pub httpd: Image,
    /// The key-value store.
    pub kv: Image,
    /// Sends back what it is sent.
    pub echo: Image,
    /// Built when a test wants them.
    served: OnceLock<Served>,
    building: Mutex<()>,
}

impl Images {
    /// Builds what is not up to date.
    pub fn build() -> Result<Images> {
        let start = Instant::now();
        let out = Path::new("target/images");
        let next = out.join("next");
        let hello = image("hello", None, &[], out)?;
        let sentinel = image("sentinel", None, &[], out)?;
        let gauntlet_trusting = build(App {
            trust: vec![PublicKey::of(&testing::key(1))],
            ..app("gauntlet", &out.join("trusting"))
        })?;
        let gauntlet = image("gauntlet", None, &[], out)?;
        let stdtest = image("stdtest", None, &[], out)?;
        let httpd = image("httpd", None, &[], out)?;
        let kv = image("kv", None, &[], out)?;
        let echo = image("echo", None, &[], out)?;
        let clock_next = next_clock(&next)?;
        let clock = image("clock", None, &[], out)?;
        let stdtest_next = image("stdtest", Some("0.2.0"), &["next"], &next)?;
        let clock_bundles = out.join("clock.bundles");
        join(&clock_bundles, &[&clock, &clock_next])?;
        let stdtest_bundles = out.join("stdtest.bundles");
        join(&stdtest_bundles, &[&stdtest, &stdtest_next, &gauntlet])?;
        eprintln!(
            "suite: images are built, {:.1} s",
            start.elapsed().as_secs_f64()
        );
        Ok(Images {
            hello,
            clock,
            clock_next,
            clock_bundles,
            sentinel,
            gauntlet,
            gauntlet_trusting,
            stdtest,
            stdtest_next,
            stdtest_bundles,
            httpd,
            kv,
            echo,
            served: OnceLock::new(),
            building: Mutex::default(),
        })
    }

    /// Servers with an upgrade service.
    pub fn served(&self) -> Result<&Served> {
        let _one_at_a_time = self.building.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(served) = self.served.get() {
            return Ok(served);
        }
        let served = Served::build()?;
        Ok(self.served.get_or_init(|| served))
    }

    /// Bundles of clock and of another version of it that is optimised alike: for figures, which
    /// would say more of the optimisation otherwise.
    pub fn clock_alike(&self) -> Result<PathBuf> {
        let out = Path::new("target/images/alike");
        let next = image("clock", Some("0.2.0"), &["date"], out)?;
        let bundles = out.join("clock.bundles");
        join(&bundles, &[&self.clock, &next])?;
        Ok(bundles)
    }

    /// Tells what small things cost, and replaces itself.
    pub fn measure(&self) -> Result<Image> {
        image("measure", None, &[], Path::new("target/images"))
    }

    /// Each of them.
    pub fn all(&self) -> [&Image; 11] {
        [
            &self.hello,
            &self.clock,
            &self.clock_next,
            &self.sentinel,
            &self.gauntlet,
            &self.gauntlet_trusting,
            &self.stdtest,
            &self.stdtest_next,
            &self.httpd,
            &self.kv,
            &self.echo,
        ]
    }
}

/// The operator's key, of the images with an upgrade service; its public half is beside it.
pub const OPERATOR: &str = "target/images/served/operator";

/// Servers that trust the operator, and what they are upgraded by.
pub struct Served {
    /// The web server, and its next versions.
    pub httpd: Image,
    pub httpd_next: Image,
    /// Panics on trial.
    pub httpd_panics: Image,
    /// Commits, and says that it is not healthy.
    pub httpd_unhealthy: Image,
}

impl Served {
    /// Each of them.
    pub fn all(&self) -> [&Image; 4] {
        [
            &self.httpd,
            &self.httpd_next,
            &self.httpd_panics,
            &self.httpd_unhealthy,
        ]
    }

    /// Builds what is not up to date. The operator's key is made if it is not there; bundles are
    /// signed with it.
    pub fn build() -> Result<Served> {
        let operator = Path::new(OPERATOR);
        if !operator.exists() {
            if let Some(folder) = operator.parent() {
                fs::create_dir_all(folder)?;
            }
            keys::generate(operator)?;
        }
        Ok(Served {
            httpd: served("httpd", "0.1.0", &[])?,
            httpd_next: served("httpd", "0.2.0", &[])?,
            httpd_panics: served("httpd", "0.3.0", &["panics"])?,
            httpd_unhealthy: served("httpd", "0.4.0", &["unhealthy"])?,
        })
    }
}

/// A server that trusts the operator, and is signed by him.
fn served(name: &str, version: &str, features: &[&str]) -> Result<Image> {
    let key = keys::read_private(Path::new(OPERATOR))?;
    let image = build(App {
        version: Some(version.into()),
        features: features.iter().map(|&feature| feature.into()).collect(),
        trust: vec![PublicKey::of(&key)],
        ..app(name, &Path::new("target/images/served").join(version))
    })?;
    keys::sign_file(&image.bundle, &image.bundle, &key, false)?;
    Ok(image)
}

/// What the demo runs.
pub struct DemoImages {
    /// The web server.
    pub served: Served,
    /// Its last version.
    pub httpd_last: Image,
    /// The key-value store, and its next version.
    pub kv: Image,
    pub kv_next: Image,
    /// Tells the time.
    pub clock: Image,
    /// The bundles of it and its next version.
    pub clock_bundles: PathBuf,
}

impl DemoImages {
    /// Builds what is not up to date.
    pub fn build() -> Result<DemoImages> {
        let start = Instant::now();
        let out = Path::new("target/images");
        let next = next_clock(&out.join("next"))?;
        let clock = image("clock", None, &[], out)?;
        let clock_bundles = out.join("clock.bundles");
        join(&clock_bundles, &[&clock, &next])?;
        let images = DemoImages {
            served: Served::build()?,
            httpd_last: served("httpd", "0.5.0", &[])?,
            kv: served("kv", "0.1.0", &[])?,
            kv_next: served("kv", "0.2.0", &[])?,
            clock,
            clock_bundles,
        };
        eprintln!(
            "suite: images are built, {:.1} s",
            start.elapsed().as_secs_f64()
        );
        Ok(images)
    }
}

/// Of another source, and optimised otherwise: images need not be alike.
fn next_clock(out: &Path) -> Result<Image> {
    build(App {
        version: Some("0.2.0".into()),
        features: vec!["date".into()],
        opt_level: Some("1".into()),
        ..app("clock", out)
    })
}

/// Writes the images' bundles to a file, one after the other.
fn join(to: &Path, images: &[&Image]) -> Result<()> {
    let mut all = Vec::new();
    for Image { bundle, .. } in images {
        all.extend(fs::read(bundle).with_context(|| bundle.display().to_string())?);
    }
    fs::write(to, all).with_context(|| to.display().to_string())
}

fn image(name: &str, version: Option<&str>, features: &[&str], out: &Path) -> Result<Image> {
    build(App {
        version: version.map(Into::into),
        features: features.iter().map(|&feature| feature.into()).collect(),
        ..app(name, out)
    })
}

fn app(name: &str, out: &Path) -> App {
    App {
        name: name.into(),
        version: None,
        features: Vec::new(),
        opt_level: None,
        trust: Vec::new(),
        out_dir: out.into(),
        folder: ".".into(),
    }
}

fn build(app: App) -> Result<Image> {
    let AppReport { files, .. } = build_app(&app).with_context(|| format!("app {}", app.name))?;
    Ok(Image {
        ident: format!("{}-{}", files.manifest.name, files.manifest.version),
        img_len: files.img.len,
        img: files.img.path,
        elf: files.elf.path,
        bundle: files.bundle.path,
    })
}
