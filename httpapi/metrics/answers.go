package metrics

import (
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"nar-herder/httpapi/measured"
)

// Answers counts answers. It is a [measured.Sink] and a [prometheus.Collector].
type Answers struct {
	Registry *prometheus.Registry
	// Faults are requests that failed because of this server, Corrupt answers for nars that are
	// damaged here, and Unreached nars that could not be fetched from other instances.
	Faults, Corrupt, Unreached prometheus.Counter

	patterns []string
	cached   int // the route of answers that may be in memory
	// shards are counters by route, one shard for each processor, as processors would wait
	// for each other's caches. nearby returns a shard that this processor has used.
	shards [][]routeCounters
	nearby sync.Pool
	// unusual counts answers with other methods or statuses.
	mu      sync.Mutex
	unusual map[measured.Kind]int64
}

// routeCounters are the counters of a route in a shard.
type routeCounters struct {
	usual                    [measured.OtherMethod][len(usualStatuses)]atomic.Int64 // by method and status
	hits, misses, bytes, cut atomic.Int64
	firstByte, duration      histogram
	_                        [128]byte // no line of a cache belongs to two shards
}

// usualStatuses have counters from the start, so that the first one shows as an increase.
var usualStatuses = [...]int{200, 206, 302, 304, 400, 404, 405, 416, 500, 502, 503}

var methodNames = [...]string{measured.GET: "GET", measured.HEAD: "HEAD", measured.OtherMethod: "other"}

// New makes the counters. Routes are numbered, and patterns are their labels. Answers of the
// route cached may be in memory.
func New(patterns []string, cached int) *Answers {
	a := &Answers{
		Registry: prometheus.NewRegistry(), patterns: patterns, cached: cached,
		shards: make([][]routeCounters, runtime.GOMAXPROCS(0)), unusual: make(map[measured.Kind]int64),
	}
	for i := range a.shards {
		a.shards[i] = make([]routeCounters, len(patterns))
	}
	var next atomic.Uint32
	a.nearby.New = func() any { return &a.shards[int(next.Add(1))%len(a.shards)] }
	a.Registry.MustRegister(a)
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
		a.Registry.MustRegister(c)
		return c
	}
	a.Faults = counter("narherder_faults_total", "Requests that failed because of a fault of this server.")
	a.Corrupt = counter("narherder_damaged_nars_total", "Answers cut or refused because a stored nar does not have the hash of its narinfo.")
	a.Unreached = counter("narherder_remote_nars_failed_total", "Nars that could not be fetched from other instances for clients.")
	return a
}

// Finished implements [measured.Sink].
func (a *Answers) Finished(answers []measured.Answer) {
	shard := a.nearby.Get().(*[]routeCounters)
	for i := range answers {
		one := &answers[i]
		n, r := int64(one.Count), &(*shard)[one.Route]
		a.count(r, one.Kind, n)
		r.bytes.Add(one.Sent)
		if one.Cut {
			r.cut.Add(n)
		}
		if int(one.Route) == a.cached {
			if one.Hit {
				r.hits.Add(n)
			} else {
				r.misses.Add(n)
			}
		}
		r.firstByte.add(one.FirstByte, n)
		r.duration.add(one.Duration, n)
	}
	a.nearby.Put(shard)
}

func (a *Answers) count(r *routeCounters, kind measured.Kind, n int64) {
	if kind.Method != measured.OtherMethod {
		for i, status := range usualStatuses {
			if status == int(kind.Status) {
				r.usual[kind.Method][i].Add(n)
				return
			}
		}
	}
	kind.Hit = false
	a.mu.Lock()
	defer a.mu.Unlock()
	a.unusual[kind] += n
}

// sum returns the sums of all shards for a route.
func (a *Answers) sum(route int) *routeCounters {
	sum := new(routeCounters)
	for _, shard := range a.shards {
		r := &shard[route]
		for method := range r.usual {
			for i := range r.usual[method] {
				sum.usual[method][i].Add(r.usual[method][i].Load())
			}
		}
		sum.hits.Add(r.hits.Load())
		sum.misses.Add(r.misses.Load())
		sum.bytes.Add(r.bytes.Load())
		sum.cut.Add(r.cut.Load())
		sum.firstByte.addAll(&r.firstByte)
		sum.duration.addAll(&r.duration)
	}
	return sum
}

// Snapshot has sums since the start of the server, without requests for /metrics and /health.
type Snapshot struct {
	// Requests and Bytes are those of answers that were sent or cut. Errors are answers with
	// a status of 500 or more.
	Requests, Errors, Bytes int64
	// Hits and Misses are narinfos that were in memory, or not.
	Hits, Misses int64
	// FirstByte counts narinfos and nars by the time until the first byte was sent: element i
	// those of at most Bounds[i], and the last element those of more.
	FirstByte [len(Bounds) + 1]int64
}

// Snapshot returns the sums. quiet routes are not counted, and timed ones are in FirstByte.
func (a *Answers) Snapshot(quiet, timed func(route int) bool) (s Snapshot) {
	for route := range a.patterns {
		if quiet(route) {
			continue
		}
		r := a.sum(route)
		for method := range r.usual {
			for i, status := range usualStatuses {
				n := r.usual[method][i].Load()
				if s.Requests += n; status >= 500 {
					s.Errors += n
				}
			}
		}
		s.Bytes += r.bytes.Load()
		s.Hits += r.hits.Load()
		s.Misses += r.misses.Load()
		if timed(route) {
			for i := range r.firstByte.counts {
				s.FirstByte[i] += r.firstByte.counts[i].Load()
			}
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for kind, n := range a.unusual {
		if !quiet(int(kind.Route)) {
			if s.Requests += n; kind.Status >= 500 {
				s.Errors += n
			}
		}
	}
	return s
}

var (
	requestsDesc  = prometheus.NewDesc("narherder_http_requests_total", "Requests answered, by route, method and status.", []string{"route", "method", "status"}, nil)
	bytesDesc     = prometheus.NewDesc("narherder_http_response_body_bytes_total", "Bytes of response bodies that were sent, by route.", []string{"route"}, nil)
	cutDesc       = prometheus.NewDesc("narherder_http_cut_answers_total", "Answers that were not sent to their end, mostly because the client closed the connection, by route.", []string{"route"}, nil)
	hitsDesc      = prometheus.NewDesc("narherder_answer_cache_hits_total", "Narinfos answered from memory.", nil, nil)
	missesDesc    = prometheus.NewDesc("narherder_answer_cache_misses_total", "Narinfos that were not in memory, including those that do not exist.", nil, nil)
	firstByteDesc = prometheus.NewDesc("narherder_http_time_to_first_byte_seconds", "Time from the first byte of a request to the first byte of its answer, by route.", []string{"route"}, nil)
	durationDesc  = prometheus.NewDesc("narherder_http_request_duration_seconds", "Time from the first byte of a request to the last byte of its answer, by route.", []string{"route"}, nil)
)

// Describe implements [prometheus.Collector].
func (a *Answers) Describe(descs chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{requestsDesc, bytesDesc, cutDesc, hitsDesc, missesDesc, firstByteDesc, durationDesc} {
		descs <- desc
	}
}

// Collect implements [prometheus.Collector].
func (a *Answers) Collect(values chan<- prometheus.Metric) {
	counter := func(desc *prometheus.Desc, n int64, labels ...string) {
		values <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(n), labels...)
	}
	for route, pattern := range a.patterns {
		r := a.sum(route)
		if route == a.cached {
			counter(hitsDesc, r.hits.Load())
			counter(missesDesc, r.misses.Load())
		}
		for method := range r.usual {
			for i, status := range usualStatuses {
				counter(requestsDesc, r.usual[method][i].Load(), pattern, methodNames[method], strconv.Itoa(status))
			}
		}
		counter(bytesDesc, r.bytes.Load(), pattern)
		counter(cutDesc, r.cut.Load(), pattern)
		values <- r.firstByte.metric(firstByteDesc, pattern)
		values <- r.duration.metric(durationDesc, pattern)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for kind, n := range a.unusual {
		counter(requestsDesc, n, a.patterns[kind.Route], methodNames[kind.Method], strconv.Itoa(int(kind.Status)))
	}
}
