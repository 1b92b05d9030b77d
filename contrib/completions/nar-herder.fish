# Completion of nar-herder's commands, options and values. Generated from the command line by
# 'go test ./cmd/nar-herder -run TestOptionsDocument -update': don't edit this file.
complete -c nar-herder -f
complete -c nar-herder -n __fish_use_subcommand -a run-server -d 'Serve narinfos and nars over HTTP'
complete -c nar-herder -n __fish_use_subcommand -a import -d 'Add narinfos and their nars to the index and the storage'
complete -c nar-herder -n __fish_use_subcommand -a fetch -d 'Fetch items from substitute servers before clients request them'
complete -c nar-herder -n __fish_use_subcommand -a remove -d 'Remove items, with their narinfos and nars'
complete -c nar-herder -n __fish_use_subcommand -a drop-files -d 'Remove the nars of one compression from items that keep another'
complete -c nar-herder -n __fish_use_subcommand -a plan-removal -d 'Show what run-server would remove to keep the storage limit, and why'
complete -c nar-herder -n __fish_use_subcommand -a pin -d 'Protect items, and everything they refer to, from removal'
complete -c nar-herder -n __fish_use_subcommand -a unpin -d 'Allow items to be removed again'
complete -c nar-herder -n __fish_use_subcommand -a pins -d 'List the pins'
complete -c nar-herder -n __fish_use_subcommand -a tag -d 'Add a tag to items'
complete -c nar-herder -n __fish_use_subcommand -a untag -d 'Remove a tag from items'
complete -c nar-herder -n __fish_use_subcommand -a list -d 'List the items of the index'
complete -c nar-herder -n __fish_use_subcommand -a export -d 'Write or update a directory of narinfos and nars that any static file server can serve'
complete -c nar-herder -n __fish_use_subcommand -a copy-storage -d 'Copy all nars of a storage to another, such as a new disk'
complete -c nar-herder -n __fish_use_subcommand -a backup -d 'Write a consistent copy of the database'
complete -c nar-herder -n __fish_use_subcommand -a check -d 'Compare the index with the storage, and repair differences'
complete -c nar-herder -n __fish_use_subcommand -a verify -d 'Show who signed narinfos, whether the key is authorized, and whether their nars are right'
complete -c nar-herder -n __fish_use_subcommand -a keygen -d 'Make a key to sign narinfos with'
complete -c nar-herder -n __fish_use_subcommand -a sign -d 'Sign narinfos of the index, or files'
complete -c nar-herder -n __fish_use_subcommand -a claim-storage -d 'Show the owner of a storage, or make this instance the owner'
complete -c nar-herder -n __fish_use_subcommand -a new-identity -d 'Give a copied database its own id'
complete -c nar-herder -n __fish_use_subcommand -a dump -d 'Write the dump of the index that other instances start from'
complete -c nar-herder -n __fish_use_subcommand -a health -d 'Ask a server whether it is ready'
complete -c nar-herder -n __fish_use_subcommand -a mirror-status -d 'Show how far a mirror is behind its source'
complete -c nar-herder -n __fish_use_subcommand -a mirror-accept-loss -d 'Accept a mass removal at the source, and keep following it'
complete -c nar-herder -n __fish_use_subcommand -a stats -d 'Show the number and size of the items'
complete -c nar-herder -n __fish_use_subcommand -a migrate -d 'Migrate a database of an older version of this program'
complete -c nar-herder -n __fish_use_subcommand -a convert -d 'Convert a database of the original Nar Herder to an index, or an index to such a database'
complete -c nar-herder -n __fish_use_subcommand -a config -d 'Show the effective options of run-server, and where each comes from'
complete -c nar-herder -n __fish_use_subcommand -a version -d 'Show the version'
complete -c nar-herder -n __fish_use_subcommand -a help -d 'Show help on a command'
complete -c nar-herder -l help -d 'Show context-sensitive help'
complete -c nar-herder -l config -d 'TOML file of options' -r -F
complete -c nar-herder -l version -d 'Show the version'
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l host -d 'Name or address to listen on, or unix:PATH' -x
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l port -d 'Port to listen on' -x
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l pid-file -d 'File to write the process id to, as soon as the server starts' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l advertise -d 'Announce this server on the local network by DNS-SD, so that \'guix-daemon --discover\' finds it'
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l x-accel-redirect -d 'Let nginx in front of this server send the nars, with X-Accel-Redirect as the original does'
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l trusted-proxies -d 'Proxies that may name the client in X-Forwarded-For, for the log and for limits: addresses, networks, unix for a socket in the file system, or none' -x
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l max-connections -d 'Maximum number of open connections' -x
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l max-connections-per-address -d 'Maximum number of connections of one client address or IPv6 /64 network' -x
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l control-host -d 'Name or address of the control listener, or unix:PATH' -x
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l control-port -d 'Port of the control listener, which serves /metrics, /health, /debug/pprof/ and full pages' -x
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l public-metrics -d 'Whether to serve /metrics and /health to all clients too, and to show their figures on pages' -x -a 'yes no'
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l tls-certificate -d 'Certificate chain for HTTPS in PEM, with the server\'s own certificate first' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l tls-key -d 'Private key of --tls-certificate in PEM' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l tls-port -d 'Port to listen on for HTTPS' -x
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l tls-host -d 'Name or address to listen on for HTTPS' -x
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l database -d 'SQLite index' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l storage -d 'Directory or s3://BUCKET/PREFIX?… of the stored nars' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l storage-read-only -d 'Never write to the storage or remove from it'
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l serve-bucket-nars -d 'How to serve nars in a bucket: stream them, or redirect clients to a presigned URL that is valid for ten minutes' -x -a 'stream redirect'
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l scrub-interval -d 'How often to verify all stored nars and all narinfos in the index, at a low rate, and repair them, or none to leave that to \'nar-herder check\'' -x
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l repair-from -d 'Instance to fetch damaged nars from, besides --mirror and those of stored-on criteria' -x
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l narinfo-cache-size -d 'Memory for recently requested narinfos' -x
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l ttl -d 'How long clients may cache a narinfo' -x
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l new-ttl -d 'TTL to advertise instead of --ttl, while you change that' -x
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l negative-ttl -d 'How long clients may cache that an item does not exist' -x
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l storage-limit -d 'Remove nars to keep the storage below this size' -x
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l storage-minimum-free-space -d 'Remove nars to keep this much free on the storage\'s file system, and refuse new ones below it' -x
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l storage-nar-removal-criteria -d 'Nars that may be removed to keep the limit: those that meet all conditions of one value' -x
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l storage-hard-limit -d 'Refuse new nars above this size, including imports' -x
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l storage-check-interval -d 'How often to compare the storage with its limit' -x
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l enable-cached-compression -d 'Compression in which to cache popular nars: zstd, lzip or gzip' -x
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l cached-compression-directory -d 'Directory for cached nars of a type' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l cached-compression-directory-max-size -d 'Maximum size of that directory' -x
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l cached-compression-unused-removal-duration -d 'Remove cached nars that are not requested for this long' -x
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l cached-compression-ttl -d 'TTL of narinfos that list a cached nar of this type' -x
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l cached-compression-new-ttl -d 'TTL to advertise instead of --cached-compression-ttl, while you change that' -x
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l cached-compression-min-uses -d 'Cache a nar after this many requests' -x
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l cached-compression-workers -d 'Number of nars to compress at a time' -x
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l cached-compression-nar-source -d 'Directory or URL to read the nars to compress from' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l mirror -d 'Instance to mirror' -x
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l mirror-interval -d 'How often to poll an original Nar Herder for changes' -x
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l serve-remote-nars -d 'How to serve nars that only another instance has: stream them, or redirect clients there' -x -a 'stream redirect'
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l mirror-nars -d 'Which nars of --mirror to store: all, those that clients request (on-demand), or none' -x -a 'all on-demand none'
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l mirror-fetchers -d 'Number of nars to fetch from --mirror at a time, not counting those that clients request' -x
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l mirror-bandwidth -d 'Maximum bytes per second to fetch from --mirror, not counting what clients request' -x
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l allow-private-redirects -d 'Follow redirects of other instances to any server, not only to themselves and to public https addresses'
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l upstream -d 'Substitute server to cache, of any kind: https://HOST, or file:// with a directory' -x
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l upstream-keep -d 'Forget items of upstreams that no client has requested for this long, or none' -x
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l upstream-down -d 'How to answer for unknown items while no upstream can be reached: with an error, or with a 404 that clients cache for a minute' -x -a 'error not-found'
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l storage-cache -d 'Local directory that caches recently read nars of a remote storage' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l storage-cache-size -d 'Maximum size of --storage-cache on disk' -x
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l database-dump -d 'Dump of the index for other instances to download' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l database-dump-interval -d 'How often to write a new dump if the index has changed, or none to leave that to \'nar-herder dump\'' -x
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l acl -d 'List of authorized keys, such as Guix\'s /etc/guix/acl' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l authorized-key -d 'Public key to authorize, such as signing-key.pub, in addition to those of --acl' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l mirror-key -d 'Public key or list of keys of --mirror' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l signing-key -d 'Public key of the narinfos\' signatures, served at /signing-key.pub' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l page -d 'Pages for browsers: all (full), only how to use this server and what it has (minimal), or none (off)' -x -a 'full minimal off'
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l title -d 'Name of this server on its pages' -x
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l contact -d 'Mail address, URL or text on the pages that says how to reach you' -x
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l public-url -d 'URL at which clients reach this server, for the commands on its pages' -x
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l log-level -d 'Least level to log: DEBUG (includes requests), INFO, WARN or ERROR' -x -a 'DEBUG ERROR INFO WARN'
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l log-format -d 'Format of the log: text, or a JSON object per line' -x -a 'text json'
complete -c nar-herder -n '__fish_seen_subcommand_from run-server' -l access-log -d 'Where to log each request, with its duration, bytes and client: stderr, or a file, which is reopened at SIGHUP' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from import' -l narinfos-only -d 'Import narinfos without nars, if another server has the nars'
complete -c nar-herder -n '__fish_seen_subcommand_from import' -l tag -d 'Tag to add to the items' -x
complete -c nar-herder -n '__fish_seen_subcommand_from import' -l ensure-references-exist -d 'Refuse items that refer to items without a narinfo'
complete -c nar-herder -n '__fish_seen_subcommand_from import' -l nars -d 'How to add nars to the storage: move, copy or hard-link them' -x -a 'auto move copy link'
complete -c nar-herder -n '__fish_seen_subcommand_from import' -l keep -d 'The same as --nars=copy'
complete -c nar-herder -n '__fish_seen_subcommand_from import' -l allow-missing-files -d 'Import items that have at least one of the nars that their narinfo names'
complete -c nar-herder -n '__fish_seen_subcommand_from import' -l replace -d 'Replace the nar of an item that is already served'
complete -c nar-herder -n '__fish_seen_subcommand_from import' -l no-verify -d 'Don\'t decompress nars to compare them with their NarHash'
complete -c nar-herder -n '__fish_seen_subcommand_from import' -l database -d 'SQLite index' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from import' -l storage -d 'Directory or s3://BUCKET/PREFIX?… of the stored nars' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from import' -l acl -d 'List of authorized keys, such as Guix\'s /etc/guix/acl' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from import' -l authorized-key -d 'Public key to authorize, such as signing-key.pub, in addition to those of --acl' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from import' -l sign-with -d 'Private key, as keygen writes it, to sign narinfos that have no signature' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from import' -l sign-as -d 'Name of the signer in signatures' -x
complete -c nar-herder -n '__fish_seen_subcommand_from import' -F
complete -c nar-herder -n '__fish_seen_subcommand_from fetch' -l closure -d 'Also fetch all items that they refer to'
complete -c nar-herder -n '__fish_seen_subcommand_from fetch' -l tag -d 'Tag to add to the items, with --closure to all that they refer to as well' -x
complete -c nar-herder -n '__fish_seen_subcommand_from fetch' -l pin -d 'Pin the named items: protect them, and everything they refer to, from removal'
complete -c nar-herder -n '__fish_seen_subcommand_from fetch' -l database -d 'SQLite index' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from fetch' -l storage -d 'Directory or s3://BUCKET/PREFIX?… of the stored nars' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from fetch' -l allow-private-redirects -d 'Follow redirects of other instances to any server, not only to themselves and to public https addresses'
complete -c nar-herder -n '__fish_seen_subcommand_from fetch' -l from -d 'Substitute server to fetch from, of any kind: https://HOST, or file:// with a directory' -x
complete -c nar-herder -n '__fish_seen_subcommand_from fetch' -l upstream -d 'Like --from, for an environment or file that sets the upstreams of run-server' -x
complete -c nar-herder -n '__fish_seen_subcommand_from fetch' -l acl -d 'List of authorized keys, such as Guix\'s /etc/guix/acl' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from fetch' -l authorized-key -d 'Public key to authorize, such as signing-key.pub, in addition to those of --acl' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from fetch' -F
complete -c nar-herder -n '__fish_seen_subcommand_from remove' -l tag -d 'Also items with this tag' -x
complete -c nar-herder -n '__fish_seen_subcommand_from remove' -l now -d 'Delete narinfos and nars at once'
complete -c nar-herder -n '__fish_seen_subcommand_from remove' -l dry-run -d 'Change nothing; show what would change'
complete -c nar-herder -n '__fish_seen_subcommand_from remove' -l force -d 'With --now: also remove pinned items and what they refer to'
complete -c nar-herder -n '__fish_seen_subcommand_from remove' -l database -d 'SQLite index' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from remove' -l storage -d 'Directory or s3://BUCKET/PREFIX?… of the stored nars' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from remove' -l json -d 'Print the summary as JSON, without a line for each item'
complete -c nar-herder -n '__fish_seen_subcommand_from remove' -F
complete -c nar-herder -n '__fish_seen_subcommand_from drop-files' -l compression -d 'The compression to drop: none,gzip,lzip,zstd,xz,bzip2' -x -a 'none gzip lzip zstd xz bzip2'
complete -c nar-herder -n '__fish_seen_subcommand_from drop-files' -l tag -d 'Of items with this tag' -x
complete -c nar-herder -n '__fish_seen_subcommand_from drop-files' -l all -d 'Of all items'
complete -c nar-herder -n '__fish_seen_subcommand_from drop-files' -l undo -d 'Announce dropped files again that are not deleted yet, or that the mirrored instance or an upstream may have'
complete -c nar-herder -n '__fish_seen_subcommand_from drop-files' -l dry-run -d 'Change nothing; show what would change'
complete -c nar-herder -n '__fish_seen_subcommand_from drop-files' -l database -d 'SQLite index' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from drop-files' -l storage -d 'Directory or s3://BUCKET/PREFIX?… of the stored nars' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from drop-files' -F
complete -c nar-herder -n '__fish_seen_subcommand_from plan-removal' -l database -d 'SQLite index' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from plan-removal' -l storage -d 'Directory or s3://BUCKET/PREFIX?… of the stored nars' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from plan-removal' -l storage-limit -d 'Remove nars to keep the storage below this size' -x
complete -c nar-herder -n '__fish_seen_subcommand_from plan-removal' -l storage-minimum-free-space -d 'Remove nars to keep this much free on the storage\'s file system, and refuse new ones below it' -x
complete -c nar-herder -n '__fish_seen_subcommand_from plan-removal' -l storage-nar-removal-criteria -d 'Nars that may be removed to keep the limit: those that meet all conditions of one value' -x
complete -c nar-herder -n '__fish_seen_subcommand_from plan-removal' -l allow-private-redirects -d 'Follow redirects of other instances to any server, not only to themselves and to public https addresses'
complete -c nar-herder -n '__fish_seen_subcommand_from pin' -l allow-missing -d 'Also pin items without a narinfo'
complete -c nar-herder -n '__fish_seen_subcommand_from pin' -l database -d 'SQLite index' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from pin' -F
complete -c nar-herder -n '__fish_seen_subcommand_from unpin' -l database -d 'SQLite index' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from unpin' -F
complete -c nar-herder -n '__fish_seen_subcommand_from pins' -l database -d 'SQLite index' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from pins' -l json -d 'Print each pin as a line of JSON'
complete -c nar-herder -n '__fish_seen_subcommand_from tag' -l closure -d 'Also all items that they refer to'
complete -c nar-herder -n '__fish_seen_subcommand_from tag' -l database -d 'SQLite index' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from tag' -F
complete -c nar-herder -n '__fish_seen_subcommand_from untag' -l closure -d 'Also all items that they refer to'
complete -c nar-herder -n '__fish_seen_subcommand_from untag' -l database -d 'SQLite index' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from untag' -F
complete -c nar-herder -n '__fish_seen_subcommand_from list' -l tag -d 'Only items with this tag' -x
complete -c nar-herder -n '__fish_seen_subcommand_from list' -l withdrawn -d 'Only withdrawn items, with the time of withdrawal'
complete -c nar-herder -n '__fish_seen_subcommand_from list' -l since -d 'Only items added since this day, YYYY-MM-DD, or within this duration, such as 7d' -x
complete -c nar-herder -n '__fish_seen_subcommand_from list' -l unstored -d 'Only items without a nar in the storage'
complete -c nar-herder -n '__fish_seen_subcommand_from list' -l pinned -d 'Only items with a pin of their own'
complete -c nar-herder -n '__fish_seen_subcommand_from list' -l larger-than -d 'Only items with more bytes of nars in the storage than this' -x
complete -c nar-herder -n '__fish_seen_subcommand_from list' -l database -d 'SQLite index' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from list' -l json -d 'Print everything known about each item, as a line of JSON'
complete -c nar-herder -n '__fish_seen_subcommand_from export' -l tag -d 'Only items with this tag' -x
complete -c nar-herder -n '__fish_seen_subcommand_from export' -l closure-of -d 'Only this item and everything it refers to' -x
complete -c nar-herder -n '__fish_seen_subcommand_from export' -l delete -d 'Remove files from the directory that are no longer exported'
complete -c nar-herder -n '__fish_seen_subcommand_from export' -l accept-loss -d 'Let --delete remove more than a tenth of the directory'
complete -c nar-herder -n '__fish_seen_subcommand_from export' -l adopt -d 'Use a directory with files that no export wrote'
complete -c nar-herder -n '__fish_seen_subcommand_from export' -l dry-run -d 'Change nothing; show what would change'
complete -c nar-herder -n '__fish_seen_subcommand_from export' -l copy -d 'Copy nars instead of making hard links'
complete -c nar-herder -n '__fish_seen_subcommand_from export' -l allow-missing -d 'Skip items without stored nars, without an error'
complete -c nar-herder -n '__fish_seen_subcommand_from export' -l database -d 'SQLite index' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from export' -l storage -d 'Directory or s3://BUCKET/PREFIX?… of the stored nars' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from export' -F
complete -c nar-herder -n '__fish_seen_subcommand_from copy-storage' -l at-once -d 'Number of files to copy at a time' -x
complete -c nar-herder -n '__fish_seen_subcommand_from copy-storage' -l bandwidth -d 'Maximum bytes to read per second' -x
complete -c nar-herder -n '__fish_seen_subcommand_from copy-storage' -l compare -d 'Also compare the content of files that both storages have'
complete -c nar-herder -n '__fish_seen_subcommand_from copy-storage' -l replace -d 'Replace files of the target that differ from the source if no narinfo says which is right'
complete -c nar-herder -n '__fish_seen_subcommand_from copy-storage' -l dry-run -d 'Change nothing; show what would change'
complete -c nar-herder -n '__fish_seen_subcommand_from copy-storage' -l from -d 'Storage to copy from, in the form of --storage of run-server' -x
complete -c nar-herder -n '__fish_seen_subcommand_from copy-storage' -l to -d 'Storage to copy to' -x
complete -c nar-herder -n '__fish_seen_subcommand_from copy-storage' -l database -d 'SQLite index with the narinfos to verify nars against, or none to compare only sizes' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from copy-storage' -l json -d 'Print each file with a problem as a line of JSON, and the summary as the last line'
complete -c nar-herder -n '__fish_seen_subcommand_from backup' -l replace -d 'Replace an existing file once the new backup is complete'
complete -c nar-herder -n '__fish_seen_subcommand_from backup' -l database -d 'SQLite index' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from backup' -F
complete -c nar-herder -n '__fish_seen_subcommand_from check' -l closure-of -d 'Only check that this item, and everything that it refers to, is in the index and the storage; - reads a text with store paths from standard input' -x
complete -c nar-herder -n '__fish_seen_subcommand_from check' -l verify -d 'Also decompress each stored nar and compare it with its NarHash'
complete -c nar-herder -n '__fish_seen_subcommand_from check' -l verify-rate -d 'Maximum bytes of nars to read per second' -x
complete -c nar-herder -n '__fish_seen_subcommand_from check' -l restart -d 'With --verify: start over instead of resuming'
complete -c nar-herder -n '__fish_seen_subcommand_from check' -l closures -d 'Report items that refer to items without a narinfo'
complete -c nar-herder -n '__fish_seen_subcommand_from check' -l no-closures -d 'Report items that refer to items without a narinfo'
complete -c nar-herder -n '__fish_seen_subcommand_from check' -l repair -d 'Fetch missing and wrong nars again, quarantine wrong files, and correct the index'
complete -c nar-herder -n '__fish_seen_subcommand_from check' -l database -d 'SQLite index' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from check' -l storage -d 'Directory or s3://BUCKET/PREFIX?… of the stored nars' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from check' -l from -d 'With --repair: instance to fetch nars from' -x
complete -c nar-herder -n '__fish_seen_subcommand_from check' -l allow-private-redirects -d 'Follow redirects of other instances to any server, not only to themselves and to public https addresses'
complete -c nar-herder -n '__fish_seen_subcommand_from check' -l acl -d 'List of authorized keys, such as Guix\'s /etc/guix/acl' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from check' -l authorized-key -d 'Public key to authorize, such as signing-key.pub, in addition to those of --acl' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from check' -l json -d 'Print each finding as a line of JSON, and the totals as the last line'
complete -c nar-herder -n '__fish_seen_subcommand_from verify' -l database -d 'SQLite index' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from verify' -l storage -d 'Directory or s3://BUCKET/PREFIX?… of the stored nars' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from verify' -l acl -d 'List of authorized keys, such as Guix\'s /etc/guix/acl' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from verify' -l authorized-key -d 'Public key to authorize, such as signing-key.pub, in addition to those of --acl' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from verify' -l json -d 'Print each result as a line of JSON, with the whole key'
complete -c nar-herder -n '__fish_seen_subcommand_from verify' -F
complete -c nar-herder -n '__fish_seen_subcommand_from keygen' -F
complete -c nar-herder -n '__fish_seen_subcommand_from sign' -l mirrored -d 'Also sign items that a mirror has from its source'
complete -c nar-herder -n '__fish_seen_subcommand_from sign' -l tag -d 'Sign the items with this tag' -x
complete -c nar-herder -n '__fish_seen_subcommand_from sign' -l closure-of -d 'Sign this item and everything it refers to' -x
complete -c nar-herder -n '__fish_seen_subcommand_from sign' -l all -d 'Sign all items of the index'
complete -c nar-herder -n '__fish_seen_subcommand_from sign' -l replace -d 'Also replace valid signatures by other keys, which are lost'
complete -c nar-herder -n '__fish_seen_subcommand_from sign' -l dry-run -d 'Change nothing; show what would change'
complete -c nar-herder -n '__fish_seen_subcommand_from sign' -l database -d 'SQLite index' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from sign' -l key -d 'Private key, as keygen writes it' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from sign' -l sign-as -d 'Name of the signer in signatures' -x
complete -c nar-herder -n '__fish_seen_subcommand_from sign' -l stdout -d 'Print the signed narinfo instead of rewriting its file'
complete -c nar-herder -n '__fish_seen_subcommand_from sign' -F
complete -c nar-herder -n '__fish_seen_subcommand_from claim-storage' -l yes -d 'Id of the instance that loses the storage' -x
complete -c nar-herder -n '__fish_seen_subcommand_from claim-storage' -l accept-loss -d 'Claim the storage even if all nars in the index are missing there'
complete -c nar-herder -n '__fish_seen_subcommand_from claim-storage' -l database -d 'SQLite index' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from claim-storage' -l storage -d 'Directory or s3://BUCKET/PREFIX?… of the stored nars' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from new-identity' -l database -d 'SQLite index' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from dump' -l database -d 'SQLite index' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from dump' -l database-dump -d 'Dump of the index for other instances to download' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from health' -F
complete -c nar-herder -n '__fish_seen_subcommand_from mirror-status' -l max-lag -d 'Largest lag that counts as up to date' -x
complete -c nar-herder -n '__fish_seen_subcommand_from mirror-status' -l json -d 'Print the JSON answer of the mirror'
complete -c nar-herder -n '__fish_seen_subcommand_from mirror-status' -F
complete -c nar-herder -n '__fish_seen_subcommand_from mirror-accept-loss' -l database -d 'SQLite index' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from stats' -l database -d 'SQLite index' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from stats' -l json -d 'Print JSON'
complete -c nar-herder -n '__fish_seen_subcommand_from migrate' -l database -d 'SQLite index' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from convert' -l storage -d 'Directory or s3://BUCKET/PREFIX?… of the stored nars, to record in the index which of them exist' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from convert' -F
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l host -d 'Name or address to listen on, or unix:PATH' -x
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l port -d 'Port to listen on' -x
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l pid-file -d 'File to write the process id to, as soon as the server starts' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l advertise -d 'Announce this server on the local network by DNS-SD, so that \'guix-daemon --discover\' finds it'
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l x-accel-redirect -d 'Let nginx in front of this server send the nars, with X-Accel-Redirect as the original does'
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l trusted-proxies -d 'Proxies that may name the client in X-Forwarded-For, for the log and for limits: addresses, networks, unix for a socket in the file system, or none' -x
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l max-connections -d 'Maximum number of open connections' -x
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l max-connections-per-address -d 'Maximum number of connections of one client address or IPv6 /64 network' -x
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l control-host -d 'Name or address of the control listener, or unix:PATH' -x
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l control-port -d 'Port of the control listener, which serves /metrics, /health, /debug/pprof/ and full pages' -x
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l public-metrics -d 'Whether to serve /metrics and /health to all clients too, and to show their figures on pages' -x -a 'yes no'
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l tls-certificate -d 'Certificate chain for HTTPS in PEM, with the server\'s own certificate first' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l tls-key -d 'Private key of --tls-certificate in PEM' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l tls-port -d 'Port to listen on for HTTPS' -x
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l tls-host -d 'Name or address to listen on for HTTPS' -x
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l database -d 'SQLite index' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l storage -d 'Directory or s3://BUCKET/PREFIX?… of the stored nars' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l storage-read-only -d 'Never write to the storage or remove from it'
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l serve-bucket-nars -d 'How to serve nars in a bucket: stream them, or redirect clients to a presigned URL that is valid for ten minutes' -x -a 'stream redirect'
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l scrub-interval -d 'How often to verify all stored nars and all narinfos in the index, at a low rate, and repair them, or none to leave that to \'nar-herder check\'' -x
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l repair-from -d 'Instance to fetch damaged nars from, besides --mirror and those of stored-on criteria' -x
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l narinfo-cache-size -d 'Memory for recently requested narinfos' -x
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l ttl -d 'How long clients may cache a narinfo' -x
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l new-ttl -d 'TTL to advertise instead of --ttl, while you change that' -x
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l negative-ttl -d 'How long clients may cache that an item does not exist' -x
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l storage-limit -d 'Remove nars to keep the storage below this size' -x
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l storage-minimum-free-space -d 'Remove nars to keep this much free on the storage\'s file system, and refuse new ones below it' -x
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l storage-nar-removal-criteria -d 'Nars that may be removed to keep the limit: those that meet all conditions of one value' -x
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l storage-hard-limit -d 'Refuse new nars above this size, including imports' -x
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l storage-check-interval -d 'How often to compare the storage with its limit' -x
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l enable-cached-compression -d 'Compression in which to cache popular nars: zstd, lzip or gzip' -x
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l cached-compression-directory -d 'Directory for cached nars of a type' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l cached-compression-directory-max-size -d 'Maximum size of that directory' -x
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l cached-compression-unused-removal-duration -d 'Remove cached nars that are not requested for this long' -x
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l cached-compression-ttl -d 'TTL of narinfos that list a cached nar of this type' -x
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l cached-compression-new-ttl -d 'TTL to advertise instead of --cached-compression-ttl, while you change that' -x
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l cached-compression-min-uses -d 'Cache a nar after this many requests' -x
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l cached-compression-workers -d 'Number of nars to compress at a time' -x
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l cached-compression-nar-source -d 'Directory or URL to read the nars to compress from' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l mirror -d 'Instance to mirror' -x
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l mirror-interval -d 'How often to poll an original Nar Herder for changes' -x
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l serve-remote-nars -d 'How to serve nars that only another instance has: stream them, or redirect clients there' -x -a 'stream redirect'
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l mirror-nars -d 'Which nars of --mirror to store: all, those that clients request (on-demand), or none' -x -a 'all on-demand none'
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l mirror-fetchers -d 'Number of nars to fetch from --mirror at a time, not counting those that clients request' -x
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l mirror-bandwidth -d 'Maximum bytes per second to fetch from --mirror, not counting what clients request' -x
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l allow-private-redirects -d 'Follow redirects of other instances to any server, not only to themselves and to public https addresses'
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l upstream -d 'Substitute server to cache, of any kind: https://HOST, or file:// with a directory' -x
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l upstream-keep -d 'Forget items of upstreams that no client has requested for this long, or none' -x
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l upstream-down -d 'How to answer for unknown items while no upstream can be reached: with an error, or with a 404 that clients cache for a minute' -x -a 'error not-found'
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l storage-cache -d 'Local directory that caches recently read nars of a remote storage' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l storage-cache-size -d 'Maximum size of --storage-cache on disk' -x
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l database-dump -d 'Dump of the index for other instances to download' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l database-dump-interval -d 'How often to write a new dump if the index has changed, or none to leave that to \'nar-herder dump\'' -x
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l acl -d 'List of authorized keys, such as Guix\'s /etc/guix/acl' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l authorized-key -d 'Public key to authorize, such as signing-key.pub, in addition to those of --acl' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l mirror-key -d 'Public key or list of keys of --mirror' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l signing-key -d 'Public key of the narinfos\' signatures, served at /signing-key.pub' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l page -d 'Pages for browsers: all (full), only how to use this server and what it has (minimal), or none (off)' -x -a 'full minimal off'
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l title -d 'Name of this server on its pages' -x
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l contact -d 'Mail address, URL or text on the pages that says how to reach you' -x
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l public-url -d 'URL at which clients reach this server, for the commands on its pages' -x
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l log-level -d 'Least level to log: DEBUG (includes requests), INFO, WARN or ERROR' -x -a 'DEBUG ERROR INFO WARN'
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l log-format -d 'Format of the log: text, or a JSON object per line' -x -a 'text json'
complete -c nar-herder -n '__fish_seen_subcommand_from config' -l access-log -d 'Where to log each request, with its duration, bytes and client: stderr, or a file, which is reopened at SIGHUP' -r -F
complete -c nar-herder -n '__fish_seen_subcommand_from help' -a 'run-server import fetch remove drop-files plan-removal pin unpin pins tag untag list export copy-storage backup check verify keygen sign claim-storage new-identity dump health mirror-status mirror-accept-loss stats migrate convert config version help'
