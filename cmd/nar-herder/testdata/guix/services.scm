;;; Reads records of (nar-herder-go service), one expression after another, and prints for each
;;; what its service starts: the command and the keywords, each with 'write' on a line.
(use-modules (gnu services)
             (gnu services shepherd)
             (gnu system shadow)
             (guix gexp)
             (ice-9 textual-ports)
             (nar-herder-go package)
             (nar-herder-go service))

(define (make-forkexec-constructor command . keywords)
  (for-each (lambda (argument) (format #t "argument ~s~%" argument)) command)
  (let loop ((rest keywords))
    (unless (null? rest)
      (format #t "keyword ~s ~s~%" (symbol->string (keyword->symbol (car rest))) (format #f "~a" (cadr rest)))
      (loop (cddr rest)))))

(define (extend type config)
  ((cdr (assq type (service-type-extensions nar-herder-service-type))) config))

(define (show config)
  (for-each (lambda (service)
              (format #t "requirement ~s~%" (format #f "~a" (shepherd-service-requirement service)))
              (eval (shepherd-service-start service) (current-module)))
            (extend shepherd-root-service-type config))
  (let ((accounts (extend account-service-type config)))
    (format #t "account ~s ~s~%" (user-group-name (car accounts)) (user-account-name (cadr accounts))))
  (format #t "activation ~s~%" (format #f "~s" (extend activation-service-type config))))

(let loop ((expression (read)))
  (unless (eof-object? expression)
    (catch #t
      (lambda () (show (eval expression (current-module))))
      (lambda (key . arguments) (format #t "error ~s~%" (format #f "~s" arguments))))
    (display "end\n")
    (loop (read))))
