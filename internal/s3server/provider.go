package s3server

import (
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
)

// Provider is a public S3 service. A [Front] rejects the same requests, according to public
// reports of its users; it was not compared with the services themselves.
type Provider string

// The providers.
const (
	// Backblaze rejects every checksum header, also that of a GET, and conditional
	// uploads.
	Backblaze Provider = "Backblaze B2"
	// Cloudflare rejects CRC32C, and accepts CRC32.
	Cloudflare Provider = "Cloudflare R2"
	// Google rejects signatures of headers that its own proxies change.
	Google Provider = "Google Cloud Storage"
)

// Providers are all providers.
var Providers = []Provider{Backblaze, Cloudflare, Google}

// Front is a proxy in front of a Server that rejects the requests that a provider rejects.
type Front struct {
	server  *Server
	front   *httptest.Server
	refused atomic.Int64
}

// Front starts a proxy that is stopped after the test.
func (s *Server) Front(t testing.TB, provider Provider) *Front {
	t.Helper()
	refuse := map[Provider]func(*http.Request) *refusal{
		Backblaze: refuseChecksums, Cloudflare: refuseCRC32C, Google: refuseSignedHeaders,
	}[provider]
	if refuse == nil {
		t.Fatalf("unknown provider %q", provider)
	}
	target := &url.URL{Scheme: "http", Host: s.Address}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.DisableCompression = true
	transport.MaxIdleConnsPerHost = 32
	proxy := &httputil.ReverseProxy{Transport: transport, Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(target)
		r.Out.Host = r.In.Host // which is signed
	}}
	f := &Front{server: s}
	f.front = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if refusal := refuse(r); refusal != nil {
			f.refused.Add(1)
			refusal.write(w, r)
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(func() {
		f.front.CloseClientConnections()
		f.front.Close()
		transport.CloseIdleConnections()
	})
	return f
}

// URL is [Server.URL] with the proxy's address.
func (f *Front) URL(place string) string { return f.server.url(place, f.front.URL) }

// Refused returns how many requests the proxy has rejected so far.
func (f *Front) Refused() int { return int(f.refused.Load()) }

// refusal is an error response of S3.
type refusal struct {
	XMLName xml.Name `xml:"Error"`
	Status  int      `xml:"-"`
	Code    string
	Message string
}

func (e *refusal) write(w http.ResponseWriter, r *http.Request) {
	// Read the body, so that the client gets the response and not a reset.
	_, _ = io.Copy(io.Discard, r.Body)
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(e.Status)
	_, _ = io.WriteString(w, xml.Header)
	_ = xml.NewEncoder(w).Encode(e)
}

func refuseChecksums(r *http.Request) *refusal {
	for name := range r.Header {
		if name = strings.ToLower(name); strings.HasPrefix(name, "x-amz-checksum-") || strings.HasPrefix(name, "x-amz-sdk-checksum-") {
			return &refusal{Status: http.StatusBadRequest, Code: "InvalidArgument", Message: fmt.Sprintf("Unsupported header '%s' received for this API call.", name)}
		}
	}
	if r.Header.Get("If-None-Match") != "" && r.Method != http.MethodGet {
		return &refusal{Status: http.StatusNotImplemented, Code: "NotImplemented", Message: "A header you provided implies functionality that is not implemented"}
	}
	return nil
}

func refuseCRC32C(r *http.Request) *refusal {
	for name, values := range r.Header {
		name = strings.ToLower(name)
		if strings.Contains(name, "-checksum-crc32c") || strings.Contains(name, "-checksum-") && strings.EqualFold(values[0], "CRC32C") {
			return &refusal{Status: http.StatusNotImplemented, Code: "NotImplemented", Message: fmt.Sprintf("Header '%s' with value '%s' not implemented", name, values[0])}
		}
	}
	return nil
}

func refuseSignedHeaders(r *http.Request) *refusal {
	signed := r.URL.Query().Get("X-Amz-SignedHeaders")
	if _, list, ok := strings.Cut(r.Header.Get("Authorization"), "SignedHeaders="); ok {
		signed, _, _ = strings.Cut(list, ",")
	}
	for name := range strings.SplitSeq(signed, ";") {
		if name == "accept-encoding" || strings.HasPrefix(name, "amz-sdk-") {
			return &refusal{Status: http.StatusForbidden, Code: "SignatureDoesNotMatch", Message: "Access denied."}
		}
	}
	return nil
}
