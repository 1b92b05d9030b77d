package faultproxy

import (
	"bytes"
	"net/http"
	"sync"

	lru "github.com/hashicorp/golang-lru/v2"
)

const (
	// rememberedRequests is how many different requests are remembered.
	rememberedRequests = 1000
	// rememberedAnswers is how many of the newest answers to each are kept.
	rememberedAnswers = 4
	// rememberedSize is the maximum size of an answer.
	rememberedSize = 1 << 20
)

// memory stores old answers.
type memory struct {
	mu      sync.Mutex
	answers *lru.Cache[string, []*oldAnswer]
}

type oldAnswer struct {
	status int
	header http.Header
	body   []byte
}

func newMemory() *memory {
	answers, err := lru.New[string, []*oldAnswer](rememberedRequests)
	if err != nil {
		panic(err) // the number is positive
	}
	return &memory{answers: answers}
}

// keyOf returns the cache key of a request.
func keyOf(r *http.Request) string {
	return r.Method + " " + r.RequestURI + " " + r.Header.Get("Range")
}

// keeps returns a buffer for the body of an answer; nil for one that is not remembered. An
// answer of unknown length may be endless.
func (m *memory) keeps(r *http.Request, response *http.Response) *bytes.Buffer {
	if response.ContentLength > rememberedSize || response.ContentLength < 0 && r.Method != http.MethodHead {
		return nil
	}
	return new(bytes.Buffer)
}

func (m *memory) remember(r *http.Request, response *http.Response, body *bytes.Buffer) {
	if body == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	key := keyOf(r)
	old, _ := m.answers.Get(key)
	old = append(old[max(0, len(old)-rememberedAnswers+1):len(old):len(old)], &oldAnswer{response.StatusCode, response.Header.Clone(), body.Bytes()})
	m.answers.Add(key, old)
}

// recall returns the old answer at that fraction, 0 for the oldest; nil if there is none.
func (m *memory) recall(r *http.Request, at float64) *oldAnswer {
	m.mu.Lock()
	defer m.mu.Unlock()
	old, _ := m.answers.Get(keyOf(r))
	if len(old) == 0 {
		return nil
	}
	return old[min(int(at*float64(len(old))), len(old)-1)]
}
