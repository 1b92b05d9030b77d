package httpapi

import (
	"nar-herder/httpapi/metrics"

	"github.com/prometheus/client_golang/prometheus"
)

// register registers the metrics of the server's parts.
func (s *Server) register(registry prometheus.Registerer) {
	gauge := func(name, help string, value func() float64) {
		registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
	}
	gauge("narherder_change_streams", "Instances that follow the stream of changes.", func() float64 { return float64(s.peers.Streams()) })
	gauge("narherder_decoders", "Nars being decompressed for clients, or in memory until their clients have read them.", func() float64 { return float64(s.checker.Options.Decoders.Count()) })
	gauge("narherder_decoder_memory_bytes", "Memory reserved for decompressing for clients.", func() float64 { return float64(s.checker.Options.Decoders.Memory()) })
	gauge("narherder_decoder_memory_limit_bytes", "Limit of the memory for decompressing, for clients and background work together.", func() float64 { return float64(s.checker.Options.Decoders.Budget().Total()) })
	gauge("narherder_decoder_background_memory_bytes", "Memory reserved for decompressing by mirroring, cached compressions and removal.", func() float64 { return float64(s.checker.Options.Decoders.Budget().Background()) })
	registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "narherder_decoder_restarts_total", Help: "Nars of slow clients that were decompressed again from the start, because other clients needed the memory meanwhile.",
	}, func() float64 { return float64(s.checker.Options.Decoders.Restarted()) }))
	gauge("narherder_answer_cache_bytes", "Memory of prepared answers.", func() float64 {
		_, size := s.answers.Usage()
		return float64(size)
	})
	gauge("narherder_answer_cache_entries", "Prepared answers in memory.", func() float64 {
		count, _ := s.answers.Usage()
		return float64(count)
	})
	s.engine.Register(registry)
	registry.MustRegister(s.totals, s.health)
	metrics.RegisterProcess(registry, s.options.Version)
}
