# Completion of nar-herder's commands, options and values. Generated from the command line by
# 'go test ./cmd/nar-herder -run TestOptionsDocument -update': don't edit this file.
_nar_herder() {
	local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]} option='' words=''
	COMPREPLY=()
	# An equals sign is a word of its own, and so is the value behind it.
	if [[ $current == = ]]; then
		option=$previous current=''
	elif [[ $previous == = ]]; then
		option=${COMP_WORDS[COMP_CWORD-2]}
	elif [[ $previous == --* && $current != -* ]]; then
		option=$previous
	fi
	case $option in
	--compression) words='none gzip lzip zstd xz bzip2' ;;
	--log-format) words='text json' ;;
	--log-level) words='DEBUG ERROR INFO WARN' ;;
	--mirror-nars) words='all on-demand none' ;;
	--nars) words='auto move copy link' ;;
	--public-metrics) words='yes no' ;;
	--serve-bucket-nars) words='stream redirect' ;;
	--serve-remote-nars) words='stream redirect' ;;
	--upstream-down) words='error not-found' ;;
	--at-once|--bandwidth|--cached-compression-directory-max-size|--cached-compression-min-uses|--cached-compression-new-ttl|--cached-compression-ttl|--cached-compression-unused-removal-duration|--cached-compression-workers|--closure-of|--control-host|--control-port|--database-dump-interval|--enable-cached-compression|--from|--host|--larger-than|--max-connections|--max-connections-per-address|--max-lag|--mirror|--mirror-bandwidth|--mirror-fetchers|--mirror-interval|--narinfo-cache-size|--negative-ttl|--new-ttl|--port|--repair-from|--scrub-interval|--sign-as|--since|--storage-cache-size|--storage-check-interval|--storage-hard-limit|--storage-limit|--storage-minimum-free-space|--storage-nar-removal-criteria|--tag|--tls-host|--tls-port|--to|--trusted-proxies|--ttl|--upstream|--upstream-keep|--verify-rate|--yes) return ;;
	--access-log|--acl|--authorized-key|--cached-compression-directory|--cached-compression-nar-source|--config|--database|--database-dump|--key|--mirror-key|--pid-file|--sign-with|--signing-key|--storage|--storage-cache|--tls-certificate|--tls-key|[!-]*)
		compopt -o filenames 2>/dev/null
		mapfile -t COMPREPLY < <(compgen -f -- "$current")
		return ;;
	*)
		if ((COMP_CWORD == 1)); then
			words='run-server import fetch remove drop-files plan-removal pin unpin pins tag untag list export copy-storage backup check verify keygen sign claim-storage new-identity dump health mirror-status mirror-accept-loss stats migrate convert config version help --help --version'
		elif [[ ${COMP_WORDS[1]} == help ]]; then
			words='run-server import fetch remove drop-files plan-removal pin unpin pins tag untag list export copy-storage backup check verify keygen sign claim-storage new-identity dump health mirror-status mirror-accept-loss stats migrate convert config version help'
		elif [[ $current != -* ]]; then
			compopt -o filenames 2>/dev/null
			mapfile -t COMPREPLY < <(compgen -f -- "$current")
			return
		else
			case ${COMP_WORDS[1]} in
			run-server) words='--database= --database-dump= --host= --port= --pid-file= --storage= --storage-limit= --storage-minimum-free-space= --storage-nar-removal-criteria= --mirror= --ttl= --new-ttl= --negative-ttl= --log-level= --enable-cached-compression= --cached-compression-directory= --cached-compression-directory-max-size= --cached-compression-unused-removal-duration= --cached-compression-ttl= --cached-compression-new-ttl= --cached-compression-min-uses= --cached-compression-workers= --cached-compression-nar-source= --storage-read-only --storage-hard-limit= --mirror-interval= --database-dump-interval= --storage-check-interval= --serve-remote-nars= --serve-bucket-nars= --mirror-nars= --mirror-fetchers= --mirror-bandwidth= --acl= --authorized-key= --mirror-key= --signing-key= --allow-private-redirects --scrub-interval= --repair-from= --upstream= --upstream-keep= --upstream-down= --advertise --storage-cache= --storage-cache-size= --x-accel-redirect --narinfo-cache-size= --trusted-proxies= --max-connections= --max-connections-per-address= --control-host= --control-port= --public-metrics= --tls-certificate= --tls-key= --tls-port= --tls-host= --log-format= --access-log= --help --config= --version' ;;
			import) words='--database= --acl= --authorized-key= --storage= --narinfos-only --tag= --ensure-references-exist --nars= --keep --allow-missing-files --replace --no-verify --sign-with= --sign-as= --help --config= --version' ;;
			fetch) words='--database= --acl= --authorized-key= --storage= --from= --upstream= --closure --tag= --pin --allow-private-redirects --help --config= --version' ;;
			remove) words='--database= --storage= --tag= --now --dry-run --force --json --help --config= --version' ;;
			drop-files) words='--database= --storage= --compression= --tag= --all --undo --dry-run --help --config= --version' ;;
			plan-removal) words='--database= --storage= --storage-limit= --storage-minimum-free-space= --storage-nar-removal-criteria= --allow-private-redirects --help --config= --version' ;;
			pin) words='--database= --allow-missing --help --config= --version' ;;
			unpin) words='--database= --help --config= --version' ;;
			pins) words='--database= --json --help --config= --version' ;;
			tag) words='--database= --closure --help --config= --version' ;;
			untag) words='--database= --closure --help --config= --version' ;;
			list) words='--database= --tag= --withdrawn --since= --unstored --pinned --larger-than= --json --help --config= --version' ;;
			export) words='--database= --storage= --tag= --closure-of= --delete --accept-loss --adopt --dry-run --copy --allow-missing --help --config= --version' ;;
			copy-storage) words='--from= --to= --database= --at-once= --bandwidth= --compare --replace --dry-run --json --help --config= --version' ;;
			backup) words='--database= --replace --help --config= --version' ;;
			check) words='--database= --acl= --authorized-key= --storage= --verify --verify-rate= --restart --closures --no-closures --repair --from= --closure-of= --allow-private-redirects --json --help --config= --version' ;;
			verify) words='--database= --storage= --acl= --authorized-key= --json --help --config= --version' ;;
			keygen) words='--help --config= --version' ;;
			sign) words='--database= --key= --sign-as= --replace --mirrored --dry-run --stdout --tag= --closure-of= --all --help --config= --version' ;;
			claim-storage) words='--database= --storage= --yes= --accept-loss --help --config= --version' ;;
			new-identity) words='--database= --help --config= --version' ;;
			dump) words='--database= --database-dump= --help --config= --version' ;;
			health) words='--help --config= --version' ;;
			mirror-status) words='--max-lag= --json --help --config= --version' ;;
			mirror-accept-loss) words='--database= --help --config= --version' ;;
			stats) words='--database= --json --help --config= --version' ;;
			migrate) words='--database= --help --config= --version' ;;
			convert) words='--storage= --help --config= --version' ;;
			config) words='--database= --database-dump= --host= --port= --pid-file= --storage= --storage-limit= --storage-minimum-free-space= --storage-nar-removal-criteria= --mirror= --ttl= --new-ttl= --negative-ttl= --log-level= --enable-cached-compression= --cached-compression-directory= --cached-compression-directory-max-size= --cached-compression-unused-removal-duration= --cached-compression-ttl= --cached-compression-new-ttl= --cached-compression-min-uses= --cached-compression-workers= --cached-compression-nar-source= --storage-read-only --storage-hard-limit= --mirror-interval= --database-dump-interval= --storage-check-interval= --serve-remote-nars= --serve-bucket-nars= --mirror-nars= --mirror-fetchers= --mirror-bandwidth= --acl= --authorized-key= --mirror-key= --signing-key= --allow-private-redirects --scrub-interval= --repair-from= --upstream= --upstream-keep= --upstream-down= --advertise --storage-cache= --storage-cache-size= --x-accel-redirect --narinfo-cache-size= --trusted-proxies= --max-connections= --max-connections-per-address= --control-host= --control-port= --public-metrics= --tls-certificate= --tls-key= --tls-port= --tls-host= --log-format= --access-log= --help --config= --version' ;;
			version) words='--help --config= --version' ;;
			help) words='--help --config= --version' ;;
			esac
		fi ;;
	esac
	mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
	if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *= ]]; then
		compopt -o nospace 2>/dev/null
	fi
}
complete -F _nar_herder nar-herder
