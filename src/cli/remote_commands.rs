//! The part of the tree of verbs that is about library servers, their endpoints and key servers.

use super::commands::{WHO, architecture, number, word};
use super::elsewhere::ELSEWHERE;
use super::flags::{Command, Flag, Rest, Said, os};
use super::{keyserver, library, remote};
use crate::report::Failure;
use std::process::ExitCode;

const FILE: &[Flag] = &[Flag::text(
    "config",
    "FILE",
    |said, file| said.remote.file = Some(os(file)),
    "Keep endpoints and tokens in this file instead of ~/.apptainer/remote.yaml",
)
.short('c')];

const GLOBAL: &[Flag] =
    &[Flag::switch("global", |said, on| said.remote.global = on, "Change the endpoints of the site").short('g')];

const TOKEN: &[Flag] = &[Flag::text(
    "tokenfile",
    "FILE",
    |said, file| said.remote.token_file = Some(os(file)),
    "Log in with the token in this file",
)];

const INSECURE_LOGIN: &[Flag] = &[Flag::switch(
    "insecure",
    |said, on| said.remote.insecure = on,
    "Reach a registry without encryption; endpoints are reached as they were added",
)
.short('i')
.keys(&["LOGIN_INSECURE"])];

const REMOTE_VERBS: &[Command] = &[
    Command::verb("add", |said| remote::add(&said.remote, &said.login, word(&said, 0), word(&said, 1)), "Add an endpoint and use it")
        .flags(&[
            FILE,
            GLOBAL,
            TOKEN,
            &[
                Flag::switch(
                    "insecure",
                    |said, on| said.remote.insecure = on,
                    "Reach the endpoint without encryption",
                )
                .short('i')
                .keys(&["ADD_INSECURE"]),
                Flag::switch("no-default", |said, on| said.remote.no_default = on, "Don't use it from now on")
                    .short('n'),
                Flag::switch("no-login", |said, on| said.remote.no_login = on, "Don't log in there"),
            ],
        ])
        .words(&["NAME", "ADDRESS"], Rest::Nothing)
        .text(
            "The endpoint is asked for its services when they are needed. Unless --no-login is said, a token is asked for, as by \
             `remote login`.",
            &[("sifu remote add --no-login mine library.example", "Add a library server that needs no login")],
        ),
    Command::verb(
        "get-login-password",
        |said| remote::get_login_password(&said.remote),
        "Print the password for a library's registry",
    )
    .flags(&[FILE]),
    Command::verb("list", |said| remote::list(&said.remote), "List the endpoints").flags(&[FILE]),
    Command::verb(
        "login",
        |said| remote::login(&said.remote, &said.login, &said.elsewhere, &said.words),
        "Check a token with an endpoint and keep it",
    )
    .flags(&[FILE, TOKEN, INSECURE_LOGIN, WHO])
    .words(&[], Rest::Words("NAME"))
    .text(
        "Without NAME it is the endpoint in use. The token is what --tokenfile, --password-stdin or --password says; else it is \
         asked for.",
        &[("sifu remote login --tokenfile token.txt mine", "Log in without being asked")],
    ),
    Command::verb(
        "logout",
        |said| remote::logout(&said.remote, &said.elsewhere, &said.words),
        "Forget the token for an endpoint",
    )
    .flags(&[FILE])
    .words(&[], Rest::Words("NAME"))
    .text("Without NAME it is the endpoint in use.", &[]),
    Command::verb("remove", |said| remote::remove(&said.remote, word(&said, 0)), "Remove an endpoint")
        .flags(&[FILE, GLOBAL])
        .words(&["NAME"], Rest::Nothing),
    Command::verb(
        "status",
        |said| remote::status(&said.remote, &said.words),
        "Show an endpoint's services and whether its token is good",
    )
    .flags(&[FILE])
    .words(&[], Rest::Words("NAME"))
    .text("Without NAME it is the endpoint in use.", &[]),
    Command::verb("use", |said| remote::use_(&said.remote, word(&said, 0)), "Use an endpoint from now on")
        .flags(&[
            FILE,
            GLOBAL,
            &[Flag::switch(
                "exclusive",
                |said, on| said.remote.exclusive = on,
                "Allow no other one to anybody; implies --global",
            )
            .short('e')],
        ])
        .words(&["NAME"], Rest::Nothing),
];

pub const REMOTE: Command = Command::group(
    "remote",
    REMOTE_VERBS,
    "Manage endpoints of libraries",
)
.flags(&[FILE])
.text(
    "An endpoint is the address of a group of services: a library of images, a key server, and one that checks tokens. That in use \
     answers for library:// images that name no host. Endpoints and tokens are kept in ~/.apptainer/remote.yaml, as Apptainer does; \
     those of the site in remote.yaml beside sifu.conf. The endpoint that is there at first has no library.",
    &[
        ("sifu remote add --no-login mine library.example", "Add a library server and use it"),
        ("sifu remote list", "See which one is in use"),
    ],
);

const KEYSERVER_VERBS: &[Command] = &[
    Command::verb(
        "add",
        |said| keyserver::add(&said.remote, &said.words),
        "Add a key server for all users of the site",
    )
    .flags(&[&[
        Flag::switch("insecure", |said, on| said.remote.insecure = on, "Talk to it without checking its certificate")
            .short('i'),
        Flag::checked(
            "order",
            "NUMBER",
            |said, text| number(text).map(|order| said.remote.order = Some(order).filter(|&order| order > 0)),
            "Ask it as the first, second … (default the last)",
        )
        .short('o'),
    ]])
    .words(&["[ENDPOINT] ADDRESS"], Rest::Further),
    Command::verb("list", |said| keyserver::list(&said.remote, &said.words), "List the key servers of the endpoints")
        .flags(&[FILE])
        .words(&[], Rest::Words("ENDPOINT")),
    Command::verb(
        "login",
        |said| keyserver::login(&said.remote, &said.login, word(&said, 0)),
        "Check a login with a key server and keep it",
    )
    .flags(&[FILE, WHO])
    .words(&["ADDRESS"], Rest::Nothing)
    .text("With --username it is a name and a password, without one a token.", &[]),
    Command::verb("logout", |said| keyserver::logout(&said.remote, word(&said, 0)), "Forget a login to a key server")
        .flags(&[FILE])
        .words(&["ADDRESS"], Rest::Nothing),
    Command::verb(
        "remove",
        |said| keyserver::remove(&said.remote, &said.words),
        "Remove a key server for all users of the site",
    )
    .words(&["[ENDPOINT] ADDRESS"], Rest::Further),
];

pub const KEYSERVER: Command = Command::group("keyserver", KEYSERVER_VERBS, "Manage key servers").flags(&[FILE]).text(
    "Key servers belong to an endpoint of the site, in the order in which they are asked; one is the endpoint's own. Those who may \
     write the site's files add and remove them.",
    &[("sifu keyserver add --order 1 https://keys.example", "Ask this key server first")],
);

pub const SEARCH: Command = Command::verb("search", search, "Search a library for images")
    .flags(&[
        &[
            Flag::checked(
                "arch",
                "NAME",
                |said, text| architecture(text).map(|arch| said.library.architecture = Some(arch)),
                "The machine that the images are for (default this one)",
            )
            .keys(&["SEARCH_ARCH"]),
            Flag::switch("signed", |said, on| said.library.signed = on, "Show signed images only")
                .keys(&["SEARCH_SIGNED"]),
        ],
        ELSEWHERE,
    ])
    .words(&["WORD"], Rest::Nothing)
    .text(
        "Lists the images of a library server whose names hold WORD, which has three characters or more.",
        &[("sifu search --arch arm64 samtools", "Find images for another machine")],
    );

pub const DELETE: Command = Command::verb("delete", delete, "Delete an image from a library")
    .flags(&[
        &[
            Flag::checked(
                "arch",
                "NAME",
                |said, text| architecture(text).map(|arch| said.library.architecture = Some(arch)),
                "The machine that the image is for (default this one)",
            )
            .short('A')
            .keys(&["ARCH"]),
            Flag::switch("force", |said, on| said.library.force = on, "Don't ask").short('F').keys(&["FORCE"]),
            Flag::checked(
                "timeout",
                "SECONDS",
                |said, text| number(text).map(|seconds| said.library.timeout_seconds = Some(seconds)),
                "Give up when it is not done after so long",
            )
            .short('T')
            .keys(&["TIMEOUT"]),
        ],
        ELSEWHERE,
    ])
    .words(&["URI"], Rest::Nothing)
    .text(
        "Removes what a tag means for one machine. Other machines' images of the same tag stay.",
        &[("sifu delete library://ada/tools/box:1.0", "Delete an image, after a question")],
    );

fn search(said: Said) -> Result<ExitCode, Failure> {
    library::search(&said.library, &said.elsewhere, word(&said, 0))
}

fn delete(said: Said) -> Result<ExitCode, Failure> {
    library::delete(&said.library, &said.elsewhere, word(&said, 0))
}
