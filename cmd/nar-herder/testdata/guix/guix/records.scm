;;; The least of Guix's module that loads contrib/guix in a test: records with defaults and
;;; "inherit".
(define-module (guix records)
  #:export (record)
  #:export-syntax (define-record-type*))

(define (record type defaults assignments base)
  "Return a record as a list of its TYPE and its fields."
  (for-each (lambda (assignment)
              (unless (assq (car assignment) defaults)
                (error "no such field:" (car assignment))))
            assignments)
  (list type
        (map (lambda (field)
               (let ((given (assq (car field) assignments)))
                 (cons (car field)
                       (cond (given (cdr given))
                             (base (cdr (assq (car field) (cadr base))))
                             (else ((cdr field)))))))
             defaults)))

(define-syntax define-record-type*
  (lambda (form)
    (define (default-of options)
      (syntax-case options (default)
        (((default value) . _) #'value)
        ((_ . rest) (default-of #'rest))
        (() #'(error "a field without default is not set"))))
    (syntax-case form ()
      ((_ type constructor make predicate (field getter option ...) ...)
       (with-syntax (((value ...) (map default-of #'((option ...) ...))))
         #'(begin
             (define (make assignments base)
               (record 'type (list (cons 'field (lambda () value)) ...) assignments base))
             (define (predicate record) (and (pair? record) (eq? (car record) 'type)))
             (define-syntax constructor
               (syntax-rules (inherit)
                 ((_ (inherit base) (name given) (... ...))
                  (make (list (cons 'name given) (... ...)) base))
                 ((_ (name given) (... ...))
                  (make (list (cons 'name given) (... ...)) #f))))
             (define (getter record) (cdr (assq 'field (cadr record)))) ...))))))
