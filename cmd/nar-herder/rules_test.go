package main

import (
	"encoding/json"
	"fmt"
	"net/url"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// monitor is a running Prometheus.
type monitor struct{ address string }

// startPrometheus starts a Prometheus that scrapes servers, with the rules of contrib.
func startPrometheus(t *testing.T, addresses []string) *monitor {
	t.Helper()
	program := required(t, "prometheus")
	rules, err := filepath.Abs(filepath.Join(root, "contrib/prometheus/nar-herder.rules.yml"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	config := filepath.Join(dir, "prometheus.yml")
	write(t, config, fmt.Sprintf(`global: {scrape_interval: 500ms, evaluation_interval: 500ms}
rule_files: [%q]
scrape_configs: [{job_name: nar-herder, static_configs: [{targets: ["%s"]}]}]
`, rules, strings.Join(addresses, `", "`)))
	m := &monitor{ownHost() + ":" + instancePort}
	commandOf(exec.Command(program, "--config.file="+config, "--storage.tsdb.path="+filepath.Join(dir, "data"),
		"--web.listen-address="+m.address, "--log.level=warn")).start(t)
	until(t, "all servers are scraped", func() bool {
		got, err := m.try("/api/v1/query", "count(count_over_time(up[1m]) >= 4)")
		return err == nil && strings.Contains(string(got), fmt.Sprintf(`%q]`, strconv.Itoa(len(addresses))))
	})
	return m
}

// try returns the data of an answer of the API.
func (m *monitor) try(path, query string) (json.RawMessage, error) {
	got, err := tryGet(m.address, path+"?query="+url.QueryEscape(query))
	if err != nil {
		return nil, err
	}
	var answer struct {
		Status, Error string
		Data          json.RawMessage
	}
	if err := json.Unmarshal([]byte(got.body), &answer); err != nil || answer.Status != "success" {
		return nil, fmt.Errorf("%s: %s, %w", query, answer.Error, err)
	}
	return answer.Data, nil
}

// query returns the series that an expression has now.
func (m *monitor) query(t *testing.T, expression string) (series []json.RawMessage) {
	t.Helper()
	data, err := m.try("/api/v1/query", expression)
	if err != nil {
		t.Error(err)
		return nil
	}
	var answer struct{ Result []json.RawMessage }
	if err := json.Unmarshal(data, &answer); err != nil {
		t.Errorf("%s: %v", expression, err)
	}
	return answer.Result
}

var (
	selectorPattern = regexp.MustCompile(`(narherder_\w+)(?:\{([^}]*)\})?`)
	matcherPattern  = regexp.MustCompile(`(\w+)(=~|!=|!~|=)"([^"]*)"`)
	groupPattern    = regexp.MustCompile(`\b(?:by|on) \(([^)]*)\)`)
)

// check checks that the servers have the metrics of an expression, and their labels.
func (f *families) check(t *testing.T, expression string) {
	t.Helper()
	known := []string{"job", "instance"}
	for _, selector := range selectorPattern.FindAllStringSubmatch(expression, -1) {
		labels := []string{"job", "instance"}
		family := f.byName[selector[1]]
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			if base := f.byName[strings.TrimSuffix(selector[1], suffix)]; family == nil && base != nil && base.kind == "histogram" {
				family = base
				labels = append(labels, "le")
			}
		}
		if family == nil {
			t.Errorf("%s: no server has %s", expression, selector[1])
			continue
		}
		labels = append(labels, family.labels...)
		known = append(known, labels...)
		for _, matcher := range matcherPattern.FindAllStringSubmatch(selector[2], -1) {
			if !slices.Contains(labels, matcher[1]) {
				t.Errorf("%s: %s has no label %s", expression, family.name, matcher[1])
			}
			if matcher[1] != "job" && matcher[2] == "=" && !f.values[family.name+" "+matcher[1]][matcher[3]] {
				t.Errorf("%s: no server has %s with %s", expression, family.name, matcher[0])
			}
		}
	}
	for _, group := range groupPattern.FindAllStringSubmatch(expression, -1) {
		for label := range strings.SplitSeq(group[1], ", ") {
			if !slices.Contains(known, label) {
				t.Errorf("%s: no metric has the label %s", expression, label)
			}
		}
	}
}

// testRules tests the alerts and the dashboard with healthy servers, which have all metrics.
func testRules(t *testing.T, all *families, m *monitor) {
	dir := filepath.Join(root, "contrib", "prometheus")
	promtool := required(t, "promtool")
	for _, args := range [][]string{{"check", "rules", "--lint-fatal", "nar-herder.rules.yml"}, {"test", "rules", "nar-herder.test.yml"}} {
		cmd := exec.Command(promtool, args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", args, err, out)
		}
	}
	data, err := m.try("/api/v1/rules", "")
	if err != nil {
		t.Fatal(err)
	}
	var answer struct {
		Groups []struct {
			Rules []struct {
				Name, Query, Health, LastError string
				Labels, Annotations            map[string]string
			}
		}
	}
	if err := json.Unmarshal(data, &answer); err != nil || len(answer.Groups) != 1 {
		t.Fatalf("%v: %s", err, data)
	}
	tests := read(t, dir, "nar-herder.test.yml")
	anchors := make(map[string]bool)
	for line := range strings.Lines(read(t, root, "docs/troubleshooting.md")) {
		if title, ok := strings.CutPrefix(line, "### "); ok {
			anchors["docs/troubleshooting.md#"+strings.ToLower(strings.TrimSpace(title))] = true
		}
	}
	for _, rule := range answer.Groups[0].Rules {
		all.check(t, rule.Query)
		if firing := m.query(t, rule.Query); len(firing) > 0 {
			t.Errorf("%s fires on a healthy server: %s", rule.Name, firing)
		}
		if rule.Health != "ok" || rule.Labels["severity"] == "" || rule.Annotations["summary"] == "" || rule.Annotations["description"] == "" {
			t.Errorf("%+v", rule)
		}
		if runbook := rule.Annotations["runbook_url"]; !anchors[runbook] {
			t.Errorf("%s: no paragraph at %q", rule.Name, runbook)
		}
		delete(anchors, rule.Annotations["runbook_url"])
		if !strings.Contains(tests, fmt.Sprintf("alertname=%q", rule.Name)) {
			t.Errorf("no test makes %s fire", rule.Name)
		}
	}
	if len(anchors) > 0 {
		t.Errorf("paragraphs without alerts: %v", anchors)
	}
	testDashboard(t, all, m)
}

// comparison is the end of an expression that leaves series out.
var comparison = regexp.MustCompile(` (?:==|>) [01]$`)

// testDashboard tests that each expression of the dashboard returns something.
func testDashboard(t *testing.T, all *families, m *monitor) {
	var dashboard struct {
		Panels []struct {
			Title, Type string
			Targets     []struct{ Expr string }
		}
		Templating struct{ List []struct{ Name string } }
	}
	if err := json.Unmarshal([]byte(read(t, root, "contrib/grafana/nar-herder.json")), &dashboard); err != nil {
		t.Fatal(err)
	}
	variables := strings.NewReplacer("$job", "nar-herder", "$instance", ".+", "$__rate_interval", "1m")
	rows, expressions := 0, 0
	for _, panel := range dashboard.Panels {
		if panel.Type == "row" {
			rows++
		} else if len(panel.Targets) == 0 {
			t.Errorf("the panel %q is empty", panel.Title)
		}
		for _, target := range panel.Targets {
			expressions++
			expression := variables.Replace(target.Expr)
			if strings.Contains(expression, "$") || !strings.Contains(target.Expr, `job="$job", instance=~"$instance"`) {
				t.Errorf("%s: %s", panel.Title, target.Expr)
			}
			all.check(t, expression)
			m.query(t, expression)
			if whole := comparison.ReplaceAllString(expression, ""); len(m.query(t, whole)) == 0 && !strings.Contains(expression, `status=~"5..`) {
				t.Errorf("%s: nothing for %s", panel.Title, whole)
			}
		}
	}
	if rows < 7 || expressions < 50 || len(dashboard.Templating.List) != 3 {
		t.Errorf("%d rows, %d expressions, %d variables", rows, expressions, len(dashboard.Templating.List))
	}
}
