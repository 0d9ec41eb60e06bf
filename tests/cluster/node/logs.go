package node

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"
)

// serveLogs answers what `kubectl logs` asks of a kubelet through the API server. Only the API server may ask: its certificate says so.
func (a *agent) serveLogs(ctx context.Context, listener net.Listener) error {
	authority, err := os.ReadFile(a.CA)
	if err != nil {
		return err
	}
	callers := x509.NewCertPool()
	if !callers.AppendCertsFromPEM(authority) {
		return fmt.Errorf("%s holds no certificate", a.CA)
	}
	own, err := tls.LoadX509KeyPair(a.Cert, a.Key)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", a.containerLogs)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "a "+a.Kind+" node has logs only; use --node real for exec, attach and port-forward", http.StatusNotImplemented)
	})
	server := &http.Server{
		Handler:           allowMasters(mux),
		TLSConfig:         &tls.Config{Certificates: []tls.Certificate{own}, ClientCAs: callers, ClientAuth: tls.RequireAndVerifyClientCert},
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          nil,
	}
	go func() {
		<-ctx.Done()
		server.Close()
	}()
	go func() {
		if err := server.ServeTLS(listener, "", ""); !errors.Is(err, http.ErrServerClosed) {
			fmt.Println("logs are not served:", err)
		}
	}()
	return nil
}

func allowMasters(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !slices.Contains(r.TLS.PeerCertificates[0].Subject.Organization, "system:masters") {
			http.Error(w, "forbidden", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (a *agent) containerLogs(w http.ResponseWriter, r *http.Request) {
	pod := a.findPod(r.PathValue("namespace"), r.PathValue("pod"))
	if pod == nil {
		http.Error(w, "pod is not on this node", http.StatusNotFound)
		return
	}
	query := r.URL.Query()
	path, live := newestLog(filepath.Join(pod.dir(), "logs"), r.PathValue("container"), query.Get("previous") == "true")
	if path == "" {
		http.Error(w, "container has no logs (yet)", http.StatusBadRequest)
		return
	}
	file, err := os.Open(path)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer file.Close()
	if tail, err := strconv.Atoi(query.Get("tailLines")); err == nil {
		if err := seekTail(file, tail); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
	}
	var out io.Writer = w
	if limit, err := strconv.ParseInt(query.Get("limitBytes"), 10, 64); err == nil {
		_, _ = io.CopyN(out, file, limit) // a caller that leaves is no error
		return
	}
	follow := query.Get("follow") == "true" && live
	for {
		_, _ = io.Copy(out, file)
		if flusher, ok := w.(http.Flusher); ok {
			flusher.Flush()
		}
		if !follow || r.Context().Err() != nil {
			return
		}
		follow = pod.isLive() // look once more after the end, for the last words
		pause(r.Context(), 100*time.Millisecond)
	}
}

// newestLog gives the log of the last run, or of the one before, and whether it may still grow.
func newestLog(dir, container string, previous bool) (path string, live bool) {
	for run := 0; ; run++ {
		next := filepath.Join(dir, fmt.Sprintf("%s.%d", container, run))
		if _, err := os.Stat(next); err != nil {
			if previous {
				if run < 2 {
					return "", false
				}
				return filepath.Join(dir, fmt.Sprintf("%s.%d", container, run-2)), false
			}
			return path, true
		}
		path = next
	}
}

// seekTail moves to the beginning of the last lines.
func seekTail(file *os.File, lines int) error {
	data, err := io.ReadAll(file)
	if err != nil {
		return err
	}
	start := len(data)
	for range lines {
		if start == 0 {
			break
		}
		start = bytes.LastIndexByte(data[:start-1], '\n') + 1
	}
	_, err = file.Seek(int64(start), io.SeekStart)
	return err
}
