package removal

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestAnonymousQuestions: many queries whether nars are stored, about all of them, must not
// delay a removal. NAR_HERDER_QUESTIONS sets their number.
func TestAnonymousQuestions(t *testing.T) {
	t.Parallel()
	c := newClock()
	a, b := newInstance(t, c), newInstance(t, c)
	const count, burst = 50, 1000
	questions := 5000
	if text := os.Getenv("NAR_HERDER_QUESTIONS"); text != "" {
		var err error
		if questions, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	a.imports(many(count, 1)...)
	b.imports(many(count, 1)...)
	conn, err := net.Dial("tcp", a.address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var requests bytes.Buffer
	for n := range burst {
		fmt.Fprintf(&requests, "GET /%s.narinfo/info HTTP/1.1\r\nHost: a\r\n\r\n", hashNumber(n%count))
	}
	answers := bufio.NewReader(conn)
	stored := 0
	for range questions / burst {
		written := make(chan error, 1)
		go func() {
			_, err := conn.Write(requests.Bytes())
			written <- err
		}()
		for range burst {
			answer, err := http.ReadResponse(answers, nil)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(answer.Body)
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(string(body), "true") {
				stored++
			}
		}
		if err := <-written; err != nil {
			t.Fatal(err)
		}
	}
	if stored == 0 {
		t.Error("no question had an answer")
	}
	r, begun := a.remover(0, b, "stored-on=B"), time.Now()
	round(t, r)
	t.Logf("after %d questions, the removal took %s", questions, time.Since(begun))
	a.wantState(strings.Repeat("r", count))
}
